"""`python -m client`: the client's verbs alone, where the server is not installed."""

import rich_click as click

from client import cli


@click.group()
def main() -> None:
    """Private posts for a group: write, read, ask and decide."""


for name in cli.__all__:
    main.add_command(getattr(cli, name))

if __name__ == "__main__":
    main(prog_name="python -m client")
