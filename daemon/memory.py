"""How the process takes memory from the system, and gives it back."""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: Parameters of glibc's mallopt (malloc.h).
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
#: From so many bytes on a buffer is taken from the system, and goes back to it when it is freed.
_LARGE = 1_048_576


def one_heap() -> None:
    """Have all threads share one heap that holds no large buffers. To be called before there are any; a fork inherits it.

    glibc gives each thread a heap of its own. What one thread fetches or reads
    another one frees, so that each of these heaps grows to its own high-water
    mark and keeps it, for days: with ten threads the service grew by a tenth.
    They hardly ever allocate at the same time, because of Python's own lock.
    And it takes a buffer as large as any that was ever freed for a small one,
    after which it lies in the heap, between what is used.
    Without glibc there is nothing to set.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return to the system what lies unused in the heap, between what is used. It takes some milliseconds."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
