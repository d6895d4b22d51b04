"""What a process holds and does not use, given back: objects in cycles, and pages of the allocator's between others.

A process that lives on makes and drops objects and arrays of all sizes for weeks. Python looks for cycles among old
objects only once their number has grown by a quarter, which beside what torch and Ray load is a hundred thousand; and
glibc returns only the top of its heaps of itself. So what a process holds would grow long after what it uses settled.
"""

import ctypes
import gc

TRIM_EVERY = 32
"""Increments, or versions that a replica has taken, from one time to the next."""


def trim() -> None:
    """Give back what nobody uses; no pages where the C library has no such call.

    Beside torch and Ray some 25 ms, of which other Python threads wait for 4; at the first time 140 ms, of which they
    wait for most, since what has been loaded by then is looked at once, and never again.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
