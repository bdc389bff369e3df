"""Numbers for the terms of a model, found in the bytes of its file as they are.

A dict of a hundred thousand strings would take longer to fill than all else at
the start of a labelling process, and more memory. So the terms of a block lie
in small buckets by their CRC-32, a term's number is its place in that order,
and a memory in front makes the search rare. Standard library only.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple
from zlib import crc32

from classifiers.memo import Memo

#: The number of a term that a block does not hold.
UNKNOWN = -1
_PER_BUCKET = 4  # terms of a bucket, on average
_REMEMBERED = 24_576  # terms of a block that are not searched again, those that it does not hold included


class Packed(NamedTuple):
    """Terms in the order of their numbers, each with a line feed before and behind, and where each bucket begins."""

    names: bytes
    starts: array[int]  # of buckets in ``names``, and the end
    firsts: array[int]  # number of the first term of each bucket, and how many terms there are


def arranged(sizes: Sequence[int], terms: Sequence[str]) -> tuple[Packed, list[int]]:
    """The terms of blocks of these sizes, packed, and where each of them stood in ``terms``."""
    buckets: list[list[int]] = []
    begin = 0
    for size in sizes:
        found: list[list[int]] = [[] for _ in range(_buckets(size))]
        for at in range(begin, begin + size):
            found[crc32(terms[at].encode()) % len(found)].append(at)
        buckets += found
        begin += size
    lengths = (sum(len(terms[at].encode()) + 1 for at in bucket) for bucket in buckets)
    order = [at for bucket in buckets for at in bucket]
    return Packed(
        names="".join(("\n", *(terms[at] + "\n" for at in order))).encode(),
        starts=array("I", accumulate(lengths, initial=1)),
        firsts=array("I", accumulate(map(len, buckets), initial=0)),
    ), order


class Vocabulary:
    """The packed terms of blocks of these sizes. Raises ValueError when they do not fit each other."""

    def __init__(self, sizes: Sequence[int], packed: Packed) -> None:
        self._names, self._starts, self._firsts = packed
        self._ends = [*accumulate(sizes)]
        buckets = sum(map(_buckets, sizes))
        if not len(self._starts) == len(self._firsts) == buckets + 1:
            raise ValueError("there are not as many buckets as the terms need")
        if self._starts[-1] != len(self._names) or self._firsts[-1] != sum(sizes):
            raise ValueError("the buckets do not hold the terms")
        self.blocks: list[Memo[str, int]] = []
        """Per block: a term's number, UNKNOWN where the block does not hold it."""
        base = 0
        for size in sizes:
            self.blocks.append(self._block(base, _buckets(size)))
            base += _buckets(size)

    def _block(self, base: int, count: int) -> Memo[str, int]:
        names, starts, firsts = self._names, self._starts, self._firsts

        def number(term: str) -> int:
            key = term.encode()
            bucket = base + crc32(key) % count
            part = names[starts[bucket] - 1 : starts[bucket + 1]]
            at = part.find(b"\n%b\n" % key)
            return UNKNOWN if at < 0 else firsts[bucket] + part.count(b"\n", 0, at)

        return Memo(number, _REMEMBERED)

    def term(self, number: int) -> tuple[int, str]:
        """The number of the block of a term, and the term."""
        bucket = bisect_right(self._firsts, number) - 1
        terms = self._names[self._starts[bucket] : self._starts[bucket + 1]].split(b"\n")
        return bisect_right(self._ends, number), terms[number - self._firsts[bucket]].decode()


def _buckets(size: int) -> int:
    return size // _PER_BUCKET + 1
