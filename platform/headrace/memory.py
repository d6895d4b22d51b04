"""What the C library's allocator keeps for later, given back: pages that are free but lie between others in use.

A process that lives on allocates and frees arrays of all sizes for weeks, and glibc returns only the top of its heaps
of itself. So what a process holds would grow long after what it uses has settled.
"""

import ctypes

TRIM_EVERY = 32
"""Increments, or versions that a replica has taken, from one time to the next."""


def trim() -> None:
    """Give free pages back, some milliseconds' work; nothing happens where the C library has no such call."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
