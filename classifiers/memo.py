"""A memory of what was worked out before, small whatever mail comes. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K", bound=str | int)
V = TypeVar("V")

#: Longer keys are worked out each time: no language has such words, so they hardly return.
LONGEST = 40


class Memo(dict[K, V], Generic[K, V]):
    """Gives the work's value for a key, of old keys from memory.

    Words come again and again (Zipf), so a subscription mostly costs no more
    than that of a dict. Once ``limit`` keys are held all are forgotten, which
    bounds the size and is cheaper to know than which of them is the oldest.
    """

    def __init__(self, work: Callable[[K], V], limit: int) -> None:
        super().__init__()
        self._work = work
        self._limit = limit

    def __missing__(self, key: K) -> V:
        value = self._work(key)
        if isinstance(key, int) or len(key) <= LONGEST:
            if len(self) >= self._limit:
                self.clear()
            self[key] = value
        return value
