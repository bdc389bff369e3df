"""Numbers for the terms of a model, found in the bytes of its file as they are.

A dict of a hundred thousand strings would take longer to fill than all else at
the start of a labelling process, and most memory. So the terms of a block lie
in buckets by their CRC-32, most of them empty, and a term's number is its
place in that order. Standard library only.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple, cast
from zlib import crc32

#: The number of a term that a block does not hold.
UNKNOWN = -1

_PER_TERM = 2  # buckets for each term, so that most of what a block does not hold meets an empty one
_REMEMBERED = 2_048  # terms of a block that are not searched again


class Packed(NamedTuple):
    """Terms in the order of their numbers, where each begins and the end, and the first number of each bucket and the end."""

    names: bytes
    offsets: array[int]
    firsts: array[int]


def arranged(sizes: Sequence[int], terms: Sequence[str]) -> tuple[Packed, list[int]]:
    """The terms of blocks of these sizes, packed, and where each of them stood in ``terms``."""
    names = [term.encode() for term in terms]
    buckets: list[list[int]] = []
    begin = 0
    for size in sizes:
        found: list[list[int]] = [[] for _ in range(_buckets(size))]
        for at in range(begin, begin + size):
            found[crc32(names[at]) % len(found)].append(at)
        buckets += found
        begin += size
    order = [at for bucket in buckets for at in bucket]
    return Packed(
        names=b"".join([names[at] for at in order]),
        offsets=array("I", accumulate((len(names[at]) for at in order), initial=0)),
        firsts=array("I", accumulate(map(len, buckets), initial=0)),
    ), order


class Block:
    """The numbers of a block's terms. What was found first is remembered, ``most_remembered`` terms of it."""

    def __init__(self, packed: Packed, base: int, buckets: int) -> None:
        self.most_remembered = _REMEMBERED
        self._packed = packed
        self._base = base
        self._buckets = buckets
        self._remembered: dict[str, int] = {}

    @classmethod
    def empty(cls) -> Block:
        """A block that holds nothing."""
        return cls(Packed(b"", array("I", [0]), array("I", [0, 0])), 0, 1)

    def numbers(self, terms: Iterable[str]) -> list[int]:
        """The number of each term, UNKNOWN where the block does not hold it."""
        terms = [*terms]
        found = [*map(self._remembered.get, terms)]
        if None not in found:
            return cast("list[int]", found)
        names, offsets, firsts = self._packed
        base, buckets, remembered = self._base, self._buckets, self._remembered
        for at, (term, known) in enumerate(zip(terms, found, strict=True)):
            if known is not None:
                continue
            name = term.encode()
            bucket = base + crc32(name) % buckets
            number, end = firsts[bucket], firsts[bucket + 1]
            # most buckets are empty, and a range would cost as much as all that went before
            while number < end and names[offsets[number] : offsets[number + 1]] != name:
                number += 1
            if number == end:
                found[at] = UNKNOWN
                continue
            found[at] = number
            if len(remembered) < self.most_remembered:
                remembered[term] = number
        return cast("list[int]", found)


class Vocabulary:
    """The packed terms of blocks of these sizes. Raises ValueError when they do not fit each other."""

    def __init__(self, sizes: Sequence[int], packed: Packed) -> None:
        buckets = [*map(_buckets, sizes)]
        if len(packed.firsts) != sum(buckets) + 1 or len(packed.offsets) != sum(sizes) + 1:
            raise ValueError("there are not as many buckets or names as the terms need")
        if packed.firsts[-1] != sum(sizes) or packed.offsets[-1] != len(packed.names):
            raise ValueError("the buckets or names do not hold the terms")
        self._packed = packed
        self._ends = [*accumulate(sizes)]
        self.blocks = [Block(packed, base, count) for base, count in zip(accumulate(buckets, initial=0), buckets, strict=False)]

    def term(self, number: int) -> tuple[int, str]:
        """The number of the block of a term, and the term."""
        names, offsets, _ = self._packed
        return bisect_right(self._ends, number), names[offsets[number] : offsets[number + 1]].decode()


def _buckets(size: int) -> int:
    return _PER_TERM * size + 1
