"""completion: what a shell needs to complete verbs and options.

The script that is printed here calls `secureblogs` itself at each TAB, with what has been typed so far in the
environment; click answers, and loads of the verbs only the one that was typed.
"""

import rich_click as click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "secureblogs"
# As click derives it from the program's name.
VARIABLE = "_SECUREBLOGS_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete verbs and options: bash, zsh or fish.

    \b
    secureblogs completion bash > ~/.local/share/bash-completion/completions/secureblogs
    secureblogs completion fish > ~/.config/fish/completions/secureblogs.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"this version of click has no completion for {shell}")
    click.echo(kind(context.find_root().command, {}, PROGRAM, VARIABLE).source())
