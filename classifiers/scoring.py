"""Scores of all classes for a document's counted terms, in plain Python.

All classes of a term are added up at once: the bytes of a row of weights are
spread over lanes of one big integer, which is then multiplied by the term's
value as a fixed-point number. That is many times faster in plain Python than
a loop over classes, and exact to some 2**-29 of a weight. Standard library
only; ``scoring_arrays`` does the same with numpy.
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
_FRACTION = 29  # bits after the point of a term's value, which is at most 1: one digit of Python's integers
#: Bytes of one class in the big integer. Values of a block have length 1, so those of 2**20 terms add up to 2**10 at most.
_LANE = 6
_USUAL = 64  # occurrences in one document whose logarithm is remembered
#: Terms that say so many times less than the strongest one are hardly ever among the strongest that are asked for.
_FAR_LESS = 16


class Linear(NamedTuple):
    """A linear model over TF-IDF: what it takes to score counted terms."""

    scale: Sequence[float]  # per class, of the weights
    intercept: Sequence[float]  # per class
    idf: array[float]  # per term
    weights: bytes  # per term one byte for each class


class Evidence(NamedTuple):
    """Linear scores of all classes, and how they come about.

    ``strongest(one, other, n)`` gives the n terms that say most about which of two classes it is: number, and what
    the term adds to the score of ``one`` beyond that of ``other``.
    """

    decisions: list[float]
    strongest: Callable[[int, int, int], list[tuple[int, float]]]


class _Logs(dict[int, float]):
    """Sublinear term frequency: 1 + ln tf."""

    def __missing__(self, tf: int) -> float:
        value = math.log(tf) + 1.0
        if tf <= _USUAL:
            self[tf] = value
        return value


class PlainScorer:
    """Evaluates a linear model where numpy is not loaded."""

    def __init__(self, linear: Linear) -> None:
        self._linear = linear
        self._log = _Logs()
        self._scaled = [[(weight - ZERO) * scale for weight in range(256)] for scale in linear.scale]
        self._apart = Struct(f"{len(linear.scale) * _LANE}s").iter_unpack

    def __call__(self, bags: Bags) -> Evidence:
        """Score a document: sublinear term frequency times idf, each block of length 1 times its weight."""
        idf, log, one = self._linear.idf, self._log, 1 << _FRACTION
        numbers: list[int] = []
        values: list[int] = []
        for weight, bag in bags:
            found = [*map(mul, map(log.__getitem__, bag.values()), map(idf.__getitem__, bag))]
            factor = weight * one / (math.hypot(*found) or 1.0)  # a block may hold nothing
            numbers.extend(bag)
            values.extend(map(int, [value * factor + 0.5 for value in found]))
        weights, width = self._linear.weights, len(self._linear.scale)
        rows = b"".join([weights[at : at + width] for at in [number * width for number in numbers]])
        return Evidence(self._decisions(rows, values), partial(self._strongest, numbers, rows, values))

    def _decisions(self, rows: bytes, values: list[int]) -> list[float]:
        scale, intercept, one = self._linear.scale, self._linear.intercept, 1 << _FRACTION
        lanes = bytearray(len(rows) * _LANE)
        lanes[_LANE - 1 :: _LANE] = rows
        total = sum(map(mul, map(int.from_bytes, chain.from_iterable(self._apart(lanes))), values))
        sums = total.to_bytes(len(scale) * _LANE)
        offset = ZERO * sum(values)
        return [
            (int.from_bytes(sums[at : at + _LANE]) - offset) / one * each + bias
            for at, each, bias in zip(range(0, len(sums), _LANE), scale, intercept, strict=True)
        ]

    def _strongest(
        self, numbers: list[int], rows: bytes, values: list[int], one: int, other: int, n: int
    ) -> list[tuple[int, float]]:
        mine, others, width = self._scaled[one], self._scaled[other], len(self._scaled)
        columns = zip(values, rows[one::width], rows[other::width], strict=True)
        pulls = [value * (mine[weight] - others[beside]) for value, weight, beside in columns]
        strength = [*map(abs, pulls)]
        least = max(strength, default=0.0) / _FAR_LESS
        order = [at for at, each in enumerate(strength) if each >= least]
        if len(order) < n:
            order = [*range(len(strength))]
        order.sort(key=strength.__getitem__, reverse=True)
        return [(numbers[at], pulls[at] / (1 << _FRACTION)) for at in order[:n]]
