"""The whole application in time that runs faster: an hour of its waits passes in minutes.

Unlike the compressed waits of the other plans, nothing of the service is set
otherwise: the event loop's own clock, the wall clock that the service reads
and the clock of its tokens run ``pace`` times as fast, so that a pause of a
quarter of an hour is one. What blocks in a thread (a socket) waits in real time.
"""

from __future__ import annotations

import asyncio
import selectors
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from daemon.app import App
from daemon.config import Config
from daemon.edges import credentials
from daemon.mind import facts_of
from daemon.pipeline import Mind


class PacedSelector(selectors.DefaultSelector):
    """Waits a fraction of the time that it is asked to."""

    def __init__(self, pace: float) -> None:
        super().__init__()
        self._pace = pace

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout if timeout is None else timeout / self._pace)


class PacedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time runs faster, with everything that waits by it."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        super().__init__(PacedSelector(pace))

    def time(self) -> float:
        return super().time() * self._pace


class PacedClock:
    """Both clocks, ``pace`` times as fast since ``epoch`` (seconds since 1970), so that a second life goes on where the first was."""

    def __init__(self, pace: float, epoch: float) -> None:
        self._pace = pace
        self._epoch = epoch

    def timestamp(self) -> float:
        return self._epoch + (time.time() - self._epoch) * self._pace

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp(), UTC)

    def monotonic(self) -> float:
        return time.monotonic() * self._pace


class _Judge:
    """What the application asks of its mind, in its own process."""

    versions = ("m", "p")

    def __init__(self, mind: Mind, thinker: Any) -> None:
        self.facts = facts_of(mind)
        self.workers = thinker

    def load(self) -> None:
        """It is there already."""

    def reload(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing runs elsewhere."""


def run_app(order: dict[str, Any], mind: Mind, thinker: Any) -> None:
    """Run the application as an order says, until SIGTERM; ``thinker`` reads and judges if it is to be its own mind."""
    clock = PacedClock(order["pace"], order["epoch"])
    judge = _Judge(mind, thinker) if order["own_mind"] else None
    credentials.time = SimpleNamespace(time=clock.timestamp, sleep=time.sleep, monotonic=time.monotonic)  # type: ignore[assignment]
    config = Config.model_validate(order["config"])
    with asyncio.Runner(loop_factory=_loops(order["pace"])) as runner:
        runner.run(_serve(config, clock, judge))


def _loops(pace: float) -> Callable[[], asyncio.AbstractEventLoop]:
    return lambda: PacedLoop(pace)


async def _serve(config: Config, clock: PacedClock, judge: _Judge | None) -> None:
    async with App(config, clock=clock, judge=judge) as app:  # type: ignore[arg-type]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop.set)
        await app.run()
