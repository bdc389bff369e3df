"""How the process takes memory from the system, and gives it back."""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: Parameter of glibc's mallopt (malloc.h).
_M_ARENA_MAX = -8


def one_heap() -> None:
    """Have all threads share one heap. To be called before there are any; a fork inherits it.

    glibc gives each thread a heap of its own. What one thread fetches or reads
    another one frees, so that each of these heaps grows to its own high-water
    mark and keeps it, for days: with ten threads the service grew by a tenth.
    They hardly ever allocate at the same time, because of Python's own lock.
    Without glibc there is nothing to set.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return to the system what lies unused in the heap, between what is used. It takes some milliseconds."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
