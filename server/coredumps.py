"""No image of this process' memory, where text and keys are, for whoever finds the file or may trace its processes."""

import ctypes
import resource
import sys

PR_SET_DUMPABLE = 4


def forbid() -> None:
    """No core dumps of this process and its children; and no other process of its user reads its memory.

    The second holds for this process alone, and on Linux: what it starts is to call this by itself. root may still.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # It can't fail for a value of 0, and there is nothing that one could do if it did.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
