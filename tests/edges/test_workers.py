"""Limits of the worker pool, with items that really break them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.edges.workers import WorkerFailure, WorkerLimits, WorkerPool
from daemon.errors import Transient


def behave(item: str) -> str:
    match item:
        case "spin":
            while True:
                pass
        case "swell":
            return "x" * 3_000_000_000
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ValueError("no good")
        case "end":
            os.kill(os.getpid(), signal.SIGTERM)
        case "number":
            return str(os.getpid())
    return item.upper()


@pytest.fixture
def pool() -> Iterator[WorkerPool[str, str]]:
    workers: WorkerPool[str, str] = WorkerPool(
        f"{__name__}:behave", processes=1, limits=WorkerLimits(cpu_seconds=1, wall_seconds=4)
    )
    yield workers
    workers.close()


async def test_results_keep_the_order_of_the_items(pool: WorkerPool[str, str]) -> None:
    assert await pool.map(["a", "b", "c"]) == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("bad", "kinds"), [("spin", {"killed", "timeout"}), ("swell", {"memory"}), ("die", {"killed"}), ("raise", {"error"})]
)
async def test_a_hostile_item_fails_alone(pool: WorkerPool[str, str], bad: str, kinds: set[str]) -> None:
    first, failure, last = await pool.map(["a", bad, "b"])
    assert (first, last) == ("A", "B")
    assert isinstance(failure, WorkerFailure)
    assert failure.kind in kinds


async def test_a_stop_of_the_whole_service_sees_the_work_through(pool: WorkerPool[str, str]) -> None:
    """systemd sends SIGTERM to every process of a unit (KillMode=control-group)."""
    before, answer, after = await pool.map(["number", "end", "number"])
    assert (answer, after) == ("END", before)


async def test_an_error_brings_its_traceback(pool: WorkerPool[str, str]) -> None:
    [failure] = await pool.map(["raise"])
    assert isinstance(failure, WorkerFailure)
    assert "ValueError: no good" in failure.traceback


async def test_workers_without_work_end_and_others_take_their_place() -> None:
    workers: WorkerPool[str, str] = WorkerPool(
        f"{__name__}:behave", processes=2, limits=WorkerLimits(cpu_seconds=1, wall_seconds=4, idle_seconds=0)
    )
    try:
        before = await workers.map(["number", "number"])
        while any(Path(f"/proc/{number}").exists() for number in before):
            await asyncio.sleep(0)
        after = await workers.map(["number", "number"])
    finally:
        workers.close()
    assert not set(before) & set(after)


async def test_no_items_need_no_process(pool: WorkerPool[str, str]) -> None:
    assert await pool.map([]) == []


def die_at_start() -> None:
    os._exit(3)


async def test_processes_that_cannot_start_are_no_items_fault() -> None:
    workers: WorkerPool[str, str] = WorkerPool(
        f"{__name__}:behave",
        processes=1,
        limits=WorkerLimits(cpu_seconds=1, wall_seconds=4, patience_seconds=3),
        prepare=f"{__name__}:die_at_start",
    )
    try:
        for _ in range(2):
            with pytest.raises(Transient):
                await workers.map(["a"])
    finally:
        workers.close()
