"""Killable worker processes for work on bytes that strangers wrote.

A thread cannot be stopped and Python's parsers can be driven into hours of
work or gigabytes of memory, so such work runs in processes with limits on
processor time, address space and wall time. Batches keep the cost of the
crossing small; when a batch fails, its members run one by one, so that one
hostile message never takes its neighbours down.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from daemon.errors import PostsaleError

A = TypeVar("A")
R = TypeVar("R")


class WorkerFailure(PostsaleError):
    """The work on one item did not end within its limits, or raised.

    ``kind`` is ``timeout``, ``memory``, ``killed`` or ``error``; ``traceback``
    is the worker's, for the record of a broken case.
    """

    def __init__(self, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.traceback = traceback


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one item may cost. ``memory_bytes`` bounds the address space of the process."""

    cpu_seconds: float = 5
    wall_seconds: float = 15
    memory_bytes: int = 1_000_000_000
    tasks_per_process: int = 2_000  # batches until a process is replaced, so that leaks stay small


class WorkerPool(Generic[A, R]):
    """A warm pool that applies one function to items.

    ``work`` and ``prepare`` are module-level functions (they are imported in
    the worker). ``prepare(*arguments)`` runs once in each process.
    """

    def __init__(
        self,
        work: Callable[[A], R],
        *,
        processes: int,
        limits: WorkerLimits,
        prepare: Callable[..., None] | None = None,
        arguments: Sequence[Any] = (),
        preload: Sequence[str] = (),
    ) -> None:
        self._work = work
        self._limits = limits
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, work.__module__, *preload])
        self._pool = ProcessPool(
            max_workers=processes,
            max_tasks=limits.tasks_per_process,
            context=context,
            initializer=_prepare,
            initargs=(limits.memory_bytes, prepare, tuple(arguments)),
        )

    async def map(self, items: Sequence[A]) -> list[R | WorkerFailure]:
        """Apply the work to every item, in order; a failed item gives its failure instead of a result."""
        if not items:
            return []
        # One slow item may use up its whole wall time; its neighbours must not be charged for it.
        wall = self._limits.wall_seconds
        try:
            return await self._schedule(items, wall if len(items) == 1 else min(wall, 2 + 0.1 * len(items)))
        except WorkerFailure as failure:
            if len(items) == 1:
                return [failure]
        middle = len(items) // 2
        first, second = await asyncio.gather(self.map(items[:middle]), self.map(items[middle:]))
        return first + second

    async def _schedule(self, items: Sequence[A], wall_seconds: float) -> list[R | WorkerFailure]:
        future = self._pool.schedule(_run, args=(self._work, list(items), self._limits.cpu_seconds), timeout=wall_seconds)
        try:
            answers: list[tuple[bool, Any]] = await asyncio.wrap_future(future)
        except (FutureTimeoutError, TimeoutError) as error:
            raise WorkerFailure("timeout", f"no end within {wall_seconds:.0f} s") from error
        except ProcessExpired as error:
            raise WorkerFailure("killed", f"the process ended with status {error.exitcode}") from error
        except MemoryError as error:
            raise WorkerFailure("memory", "address space used up") from error
        return [value if fine else WorkerFailure(*value) for fine, value in answers]

    def retire(self) -> None:
        """Take no more work, but let what was given end; the processes go away by themselves."""
        self._pool.close()

    def close(self) -> None:
        """Stop the workers at once; work in progress is given up (it is idempotent)."""
        self._pool.stop()
        self._pool.join()


def _prepare(memory_bytes: int, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prepare is not None:
        prepare(*arguments)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _run(work: Callable[[Any], Any], items: list[Any], cpu_seconds: float) -> list[tuple[bool, Any]]:
    """In the worker: each item under its own share of processor time."""
    import traceback

    answers: list[tuple[bool, Any]] = []
    for item in items:
        _allow_cpu(cpu_seconds * (1 if len(items) == 1 else 2))
        try:
            answers.append((True, work(item)))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - it becomes this item's failure, with its traceback
            answers.append((False, ("error", f"{type(error).__name__}: {error}"[:500], traceback.format_exc()[-8000:])))
    return answers


def _allow_cpu(seconds: float) -> None:
    """Let this process use that many more seconds; past them the kernel ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
