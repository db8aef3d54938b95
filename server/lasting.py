"""What a process keeps from its start to its end: modules, and what they and the app are made of.

They are some 100,000 objects, all of which Python's garbage collector goes through again and again: a sixth of the time
to start, and then, every few thousand rows, a stop of 50 ms for everybody.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """What is made in this block stays, so no garbage is looked for in it, neither now nor later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
