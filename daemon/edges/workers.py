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
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from daemon.errors import PostsaleError, Transient

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
    patience_seconds: float = 180  # a task that no process took for so long means that none can be kept running
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
        self._processes = processes
        self._initargs = (limits.memory_bytes, prepare, tuple(arguments))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, work.__module__, *preload])
        self._pool = self._start()

    def _start(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._processes,
            max_tasks=self._limits.tasks_per_process,
            context=self._context,
            initializer=_prepare,
            initargs=self._initargs,
        )

    async def map(self, items: Sequence[A]) -> list[R | WorkerFailure]:
        """Apply the work to every item, in order; a failed item gives its failure instead of a result.

        Raises Transient when the processes cannot be kept running: the machine
        is at fault then, not an item.
        """
        share = -(-len(items) // self._processes)
        parts = [items[at : at + share] for at in range(0, len(items), share)] if items else []
        done = await asyncio.gather(*(self._map(part) for part in parts))
        return [answer for part in done for answer in part]

    async def _map(self, items: Sequence[A]) -> list[R | WorkerFailure]:
        # One slow item may use up its whole wall time; its neighbours must not be charged for it.
        wall = self._limits.wall_seconds
        try:
            return await self._schedule(items, wall if len(items) == 1 else min(wall, 2 + 0.1 * len(items)))
        except WorkerFailure as failure:
            if len(items) == 1:
                return [failure]
        middle = len(items) // 2
        first, second = await asyncio.gather(self._map(items[:middle]), self._map(items[middle:]))
        return first + second

    async def _schedule(self, items: Sequence[A], wall_seconds: float) -> list[R | WorkerFailure]:
        pool = self._pool
        try:
            future = pool.schedule(_run, args=(self._work, list(items), self._limits.cpu_seconds), timeout=wall_seconds)
            # A task may queue behind others, but processes that die at their start never run it at all.
            finished, _ = await asyncio.wait({asyncio.wrap_future(future)}, timeout=self._limits.patience_seconds)
            if not finished:
                raise RuntimeError("no process took the task")
            answers: list[tuple[bool, Any]] = finished.pop().result()
        except (BrokenProcessPool, RuntimeError) as error:
            if pool is self._pool:
                self._pool = self._start()
            raise Transient(f"the worker processes do not work: {error}", retry_after=1) from error
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
