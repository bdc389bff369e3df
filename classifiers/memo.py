"""A memory of what was worked out before, small whatever mail comes. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K", bound=str | int)
V = TypeVar("V")

#: Longer keys are worked out each time: they hardly return, and would take much memory.
LONGEST = 24
_PATIENCE = 8  # times its limit a full memory may be asked in vain


class Memo(dict[K, V], Generic[K, V]):
    """Gives the work's value for a key, of old keys from memory.

    Words come again and again (Zipf), so a subscription mostly costs no more
    than that of a dict. The first ``limit`` keys are kept, for the frequent
    ones are among them; a full memory that was asked in vain many times over,
    because of a hostile flood or another season, starts afresh.
    """

    def __init__(self, work: Callable[[K], V], limit: int) -> None:
        super().__init__()
        self._work = work
        self._limit = limit
        self._in_vain = 0

    def __missing__(self, key: K) -> V:
        value = self._work(key)
        if isinstance(key, str) and len(key) > LONGEST:
            return value
        if len(self) >= self._limit:
            self._in_vain += 1
            if self._in_vain < _PATIENCE * self._limit:
                return value
            self._in_vain = 0
            self.clear()
        self[key] = value
        return value
