"""Scores of all classes for a document's counted terms, in plain Python.

All classes of a term are added up at once: the bytes of a row of weights are
spread over lanes of one big integer, which is then multiplied by the term's
value as a fixed-point number. That is many times faster in plain Python than
a loop over classes. Standard library only; ``scoring_arrays`` does the same
with numpy.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import mul
from struct import Struct
from typing import NamedTuple

#: Per block: its weight, and how often each term occurs by the term's number.
Bags = Sequence[tuple[float, Mapping[int, int]]]

ZERO = 128  # the byte that stands for a weight of zero
#: Bits after the point of an inverse document frequency. Times the logarithm of how often a term occurs that is below 2**9: one digit
#: of Python's integers.
IDF_FRACTION = 21
_LOG_FRACTION = 30  # the same of that logarithm
#: Bytes of one class in the big integer. A text of 6,000 characters has 2**15 n-grams at most, and 1 + ln tf is never above tf, so all
#: values add up to 2**15 times the largest inverse document frequency, which a million documents bring to 2**4.
_LANE = 6
_HALF = 1 << _LOG_FRACTION - 1
_USUAL = 64  # occurrences in one document whose logarithm is remembered
#: Terms that say so many times less than the strongest one are hardly ever among the strongest that are asked for.
_FAR_LESS = 16


class Linear(NamedTuple):
    """A linear model over TF-IDF: what it takes to score counted terms."""

    scale: Sequence[float]  # per class, of the weights
    intercept: Sequence[float]  # per class
    idf: array[int]  # per term, times 2**IDF_FRACTION
    weights: bytes  # per term one byte for each class


class Evidence(NamedTuple):
    """Linear scores of all classes, and how they come about.

    ``strongest(one, other, n)`` gives the n terms that say most about which of two classes it is: number, and what
    the term adds to the score of ``one`` beyond that of ``other``.
    """

    decisions: list[float]
    strongest: Callable[[int, int, int], list[tuple[int, float]]]


class _Logs(dict[int, int]):
    """Sublinear term frequency: 1 + ln tf, times 2**_LOG_FRACTION."""

    def __missing__(self, tf: int) -> int:
        value = round((math.log(tf) + 1.0) * (1 << _LOG_FRACTION))
        if tf <= _USUAL:
            self[tf] = value
        return value


class _Scored(NamedTuple):
    """The terms of one block, their values, what brings these to the block's weight, and their rows of weights."""

    numbers: list[int]
    values: list[int]
    factor: float
    rows: bytes


class PlainScorer:
    """Evaluates a linear model where numpy is not loaded."""

    def __init__(self, linear: Linear) -> None:
        self._linear = linear
        self._log = _Logs()
        self._scaled = [[(weight - ZERO) * scale for weight in range(256)] for scale in linear.scale]
        self._apart = Struct(f"{len(linear.scale) * _LANE}s").iter_unpack

    def __call__(self, bags: Bags) -> Evidence:
        """Score a document: sublinear term frequency times idf, each block of length 1 times its weight."""
        blocks = [self._scored(weight, bag) for weight, bag in bags if bag]
        decisions = [*self._linear.intercept]
        for block in blocks:
            for at, each in enumerate(self._sums(block)):
                decisions[at] += each
        return Evidence(decisions, partial(self._strongest, blocks))

    def _scored(self, weight: float, bag: Mapping[int, int]) -> _Scored:
        idf, log = self._linear.idf, self._log
        values = [
            each if tf == 1 else each * log[tf] + _HALF >> _LOG_FRACTION
            for each, tf in zip(map(idf.__getitem__, bag), bag.values(), strict=True)
        ]
        weights, width = self._linear.weights, len(self._linear.scale)
        rows = b"".join([weights[at : at + width] for at in [number * width for number in bag]])
        return _Scored([*bag], values, weight / math.hypot(*values), rows)

    def _sums(self, block: _Scored) -> list[float]:
        """What a block adds to the score of each class."""
        _, values, factor, rows = block
        lanes = bytearray(len(rows) * _LANE)
        lanes[_LANE - 1 :: _LANE] = rows
        total = sum(map(mul, map(int.from_bytes, chain.from_iterable(self._apart(lanes))), values))
        scale = self._linear.scale
        sums = total.to_bytes(len(scale) * _LANE)
        zero = ZERO * sum(values)
        return [
            (int.from_bytes(sums[at : at + _LANE]) - zero) * each * factor
            for at, each in zip(range(0, len(sums), _LANE), scale, strict=True)
        ]

    def _strongest(self, blocks: Sequence[_Scored], one: int, other: int, n: int) -> list[tuple[int, float]]:
        mine, others, width = self._scaled[one], self._scaled[other], len(self._scaled)
        numbers: list[int] = []
        pulls: list[float] = []
        for block in blocks:
            numbers += block.numbers
            columns = zip(block.values, block.rows[one::width], block.rows[other::width], strict=True)
            factor = block.factor
            pulls += [value * factor * (mine[weight] - others[beside]) for value, weight, beside in columns]
        strength = [*map(abs, pulls)]
        least = max(strength, default=0.0) / _FAR_LESS
        order = [at for at, each in enumerate(strength) if each >= least]
        if len(order) < n:
            order = [*range(len(strength))]
        order.sort(key=strength.__getitem__, reverse=True)
        return [(numbers[at], pulls[at]) for at in order[:n]]
