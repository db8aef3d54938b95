"""`python -m tests.faults.mortal VERB`: `secureblogs VERB`, in which background loops end when they are told to.

Each line of the standard input is the name of one; its task is cancelled, as by an error that nobody thought of.
"""

import asyncio
import sys
import threading

from server import cli


def obey() -> None:
    for line in sys.stdin:
        # All tasks, of whatever loop: that of the server is made later, and in another place.
        for task in list(asyncio.tasks._all_tasks):  # type: ignore[attr-defined]  # there is no other way to all of them
            if task.get_name() == line.strip() and not task.done():
                task.get_loop().call_soon_threadsafe(task.cancel)


if __name__ == "__main__":
    threading.Thread(target=obey, daemon=True).start()
    cli.main()
