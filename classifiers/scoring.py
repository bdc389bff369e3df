"""Scores of all classes for a document's counted terms, in plain Python.

All classes of a term are added up at once: the bytes of a row of weights are
spread over eight-byte lanes of one big integer, which is then multiplied by
the term's value as a fixed-point number. That is many times faster in plain
Python than a loop over classes, and exact to 2**-40 of a weight. Standard
library only; ``scoring_arrays`` does the same with numpy.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

#: Per block: its weight, and how often each term occurs by the term's number.
Bags = Sequence[tuple[float, Mapping[int, int]]]

ZERO = 128  # the byte that stands for a weight of zero
_FRACTION = 40  # bits after the point of a term's value
_LANE = 8  # bytes of one class in the big integer


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


class PlainScorer:
    """Evaluates a linear model where numpy is not loaded."""

    def __init__(self, linear: Linear) -> None:
        self._linear = linear
        self._width = len(linear.scale)
        self._log = [0.0, *(math.log(tf) + 1.0 for tf in range(1, 64))]
        self._scaled = [[(weight - ZERO) * scale for weight in range(256)] for scale in linear.scale]

    def __call__(self, bags: Bags) -> Evidence:
        """Score a document: sublinear term frequency times idf, each block of length 1 times its weight."""
        idf, log = self._linear.idf, self._log
        numbers: list[int] = []
        values: list[float] = []
        for weight, bag in bags:
            found = [(log[tf] if tf < 64 else math.log(tf) + 1.0) * idf[number] for number, tf in bag.items()]
            factor = weight / (math.hypot(*found) or 1.0)  # a block may hold nothing
            numbers.extend(bag)
            values.extend([value * factor for value in found])
        return Evidence(self._decisions(numbers, values), partial(self._strongest, numbers, values))

    def _decisions(self, numbers: list[int], values: list[float]) -> list[float]:
        weights, width, one = self._linear.weights, self._width, 1 << _FRACTION
        size = width * _LANE
        lanes = bytearray(len(numbers) * size)
        lanes[::_LANE] = b"".join([weights[number * width : (number + 1) * width] for number in numbers])
        rows, fixed = bytes(lanes), [int(value * one) for value in values]
        places = range(0, len(rows), size)
        total = sum([int.from_bytes(rows[at : at + size], "little") * value for at, value in zip(places, fixed, strict=True)])
        sums = total.to_bytes(size + _LANE, "little")
        offset = ZERO * sum(fixed)
        return [
            (int.from_bytes(sums[k * _LANE : k * _LANE + _LANE], "little") - offset) / one * scale + bias
            for k, (scale, bias) in enumerate(zip(self._linear.scale, self._linear.intercept, strict=True))
        ]

    def _strongest(self, numbers: list[int], values: list[float], one: int, other: int, n: int) -> list[tuple[int, float]]:
        weights, width = self._linear.weights, self._width
        scaled, scaled_other = self._scaled[one], self._scaled[other]
        pulls = [
            value * (scaled[weights[number * width + one]] - scaled_other[weights[number * width + other]])
            for number, value in zip(numbers, values, strict=True)
        ]
        strength = list(map(abs, pulls))
        order = sorted(range(len(pulls)), key=strength.__getitem__, reverse=True)
        return [(numbers[at], pulls[at]) for at in order[:n]]
