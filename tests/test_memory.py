"""How the process takes memory from the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_HEAPS_OF_EIGHT_THREADS = """
import ctypes, threading
from daemon.memory import one_heap
{first}
libc = ctypes.CDLL(None)
threads = [threading.Thread(target=libc.malloc, args=(50_000,)) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


_BYTES_OUTSIDE_THE_HEAP = """
import ctypes
from daemon.memory import one_heap
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(4_000_000))
class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Mallinfo
before = libc.mallinfo2().hblkhd
libc.malloc(4_000_000)
print(libc.mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are glibc's")
def test_large_buffers_stay_out_of_the_heap_after_one_was_freed() -> None:
    def outside(first: str) -> int:
        program = [sys.executable, "-c", _BYTES_OUTSIDE_THE_HEAP.format(first=first)]
        return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    assert outside("") == 0
    assert outside("one_heap()") >= 4_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are glibc's")
def test_threads_share_one_heap() -> None:
    def heaps(first: str) -> int:
        program = [sys.executable, "-c", _HEAPS_OF_EIGHT_THREADS.format(first=first)]
        return subprocess.run(program, capture_output=True, text=True, check=True).stdout.count("<heap nr=")

    assert heaps("") > 1
    assert heaps("one_heap()") == 1
