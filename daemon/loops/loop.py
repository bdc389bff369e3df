"""What all loops have in common: a pace, a wake-up, a heartbeat, an orderly end.

A loop is a repeated :meth:`Loop.step`. A step does what is due now and says
how it went; between steps the loop sleeps until it is woken, until the next
due time, or until ``idle_seconds`` have passed. Due times live in the
database, so a wake-up that is lost costs time and nothing else.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass

from daemon.clock import Clock


@dataclass(frozen=True, slots=True)
class Pace:
    """How a step went: how many things it did, and in how many seconds the next one is due (None: when woken).

    Where something was done the next step comes at once, unless that was ``all`` there was.
    """

    done: int
    next_seconds: float | None = None
    all: bool = False


class Loop(ABC):
    """One supervised loop. Whatever escapes a step ends the service loudly.

    ``bound_seconds`` is how long a step may last at most; past it the watchdog
    no longer hears that the service is well.
    """

    name: str
    bound_seconds: float = 120
    idle_seconds: float = 30

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._woken = asyncio.Event()
        self._beat = clock.monotonic()

    @abstractmethod
    async def step(self) -> Pace:
        """Do what is due now."""

    def wake(self) -> None:
        """Have the next step run at once."""
        self._woken.set()

    def beat(self) -> None:
        """Tell the watchdog that there is progress; every step does, a long one may do so in between."""
        self._beat = self.clock.monotonic()

    @property
    def healthy(self) -> bool:
        """Whether the last sign of life is younger than a step may last."""
        return self.clock.monotonic() - self._beat < self.bound_seconds + self.idle_seconds

    async def run(self, stop: asyncio.Event) -> None:
        """Step until ``stop`` is set; the step in progress is finished first."""
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                self._woken.clear()
                pace = await self.step()
                self.beat()
                if pace.done and not pace.all:
                    await asyncio.sleep(0)  # there may be more; let the others run first
                    continue
                seconds = self.idle_seconds if pace.next_seconds is None else min(pace.next_seconds, self.idle_seconds)
                woken = asyncio.ensure_future(self._woken.wait())
                try:
                    await asyncio.wait({woken, stopping}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    woken.cancel()
        finally:
            stopping.cancel()

    async def run_until_idle(self) -> int:
        """Step until nothing is due now; returns how many things were done. For tests and tools."""
        total = 0
        while True:
            self._woken.clear()
            pace = await self.step()
            total += pace.done
            if not pace.done and not self._woken.is_set():
                return total
