"""How a cost grows with its input: the machine's speed and its load fall out of a ratio of processor times."""

from __future__ import annotations

import time
from collections.abc import Callable

#: How much larger the larger input is. A linear cost grows as much, a quadratic one by its square.
FACTOR = 8
#: Growth from which a cost is no longer taken for linear: three times what it should be, and a third of a quadratic one's.
TOO_MUCH = 3 * FACTOR


def growth(work: Callable[[int], object], size: int) -> float:
    """Cost of ``work(FACTOR * size)`` over that of ``work(size)``, each the least of several tries."""
    return cost(lambda: work(FACTOR * size)) / cost(lambda: work(size))


def cost(work: Callable[[], object]) -> float:
    """Seconds of processor time, of the best of three tries that each last long enough to be measured.

    Worth something beside another cost alone, of the same minute on the same machine.
    """
    best = float("inf")
    for _ in range(3):
        runs, begun = 0, time.process_time()
        while (spent := time.process_time() - begun) < 0.01 or not runs:
            work()
            runs += 1
        best = min(best, spent / runs)
    return best
