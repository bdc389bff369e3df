"""Killable worker processes for work on bytes that strangers wrote.

A thread cannot be stopped and Python's parsers can be driven into hours of
work or gigabytes of memory, so such work runs in processes with limits on
processor time, address space and wall time. Batches keep the cost of the
crossing small; when a batch fails, its members run one by one, so that one
hostile message never takes its neighbours down.

All workers are forked from one *nursery*: a process that loads what the work
needs once, never sees a message, and whose memory the workers share. The
nursery is itself forked from the service where that has no thread yet, and
shares its memory with it; elsewhere it is spawned.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess, SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle
from pkgutil import resolve_name
from typing import Any, Generic, NoReturn, TypeVar

from daemon import memory
from daemon.errors import PostsaleError, Transient

A = TypeVar("A")
R = TypeVar("R")

_LENGTH = struct.Struct("<Q")
_MEMORY_ERROR = pickle.dumps(MemoryError())
#: How long a nursery may take to end by itself.
_LAST_WORDS_SECONDS = 2.0


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
    patience_seconds: float = 60  # loading what the work needs may take so long
    tasks_per_process: int = 2_000  # batches until a process is replaced, so that leaks stay small
    idle_seconds: float = 120  # workers end when none had anything to do for so long; to fork one takes milliseconds


class WorkerPool(Generic[A, R]):
    """A warm pool that applies one function to items.

    ``work``, ``prepare`` and ``warm_up`` name functions, ``module:function``, so
    that the service itself need not load what they need. ``prepare(*arguments)`` runs once, in the nursery, as soon as the pool is
    made; what it returns or raises is what :meth:`prepared` returns or raises.
    ``warm_up()`` runs there before the first worker is needed, and loads what
    the work would otherwise load in each worker.
    """

    def __init__(
        self,
        work: str,
        *,
        processes: int,
        limits: WorkerLimits,
        prepare: str | None = None,
        arguments: Sequence[Any] = (),
        warm_up: str | None = None,
    ) -> None:
        self._limits = limits
        self._processes = processes
        self._plan = _Plan(work, limits, prepare, tuple(arguments), warm_up)
        self._nursery = _Nursery(self._plan)
        self._idle: list[_Worker] = []
        self._turn = asyncio.Semaphore(processes)
        self._at_work = 0
        self._retired = False
        self._rest: asyncio.TimerHandle | None = None

    def prepared(self) -> Any:
        """Wait until the nursery is prepared; returns what ``prepare`` returned and raises what it raised. Blocks."""
        return self._nursery.prepared()

    async def map(self, items: Sequence[A]) -> list[R | WorkerFailure]:
        """Apply the work to every item, in order; a failed item gives its failure instead of a result.

        Raises Transient when the processes cannot be kept running: the machine
        is at fault then, not an item.
        """
        share = -(-len(items) // self._processes)
        parts = [items[at : at + share] for at in range(0, len(items), share)] if items else []
        self._at_work += 1
        self._stay()
        try:
            done = await asyncio.gather(*(self._map(part) for part in parts))
        finally:
            self._at_work -= 1
            if self._retired and not self._at_work:
                self.close()
            elif not self._at_work:
                self._rest = asyncio.get_running_loop().call_later(self._limits.idle_seconds, self._come_to_rest)
        return [answer for part in done for answer in part]

    async def _map(self, items: Sequence[A]) -> list[R | WorkerFailure]:
        # One slow item may use up its whole wall time; its neighbours must not be charged for it.
        wall = self._limits.wall_seconds
        try:
            return await self._ask(items, wall if len(items) == 1 else min(wall, 2 + 0.1 * len(items)))
        except WorkerFailure as failure:
            if len(items) == 1:
                return [failure]
        middle = len(items) // 2
        first, second = await asyncio.gather(self._map(items[:middle]), self._map(items[middle:]))
        return first + second

    async def _ask(self, items: Sequence[A], wall_seconds: float) -> list[R | WorkerFailure]:
        async with self._turn:
            worker = self._idle.pop() if self._idle else await self._new_worker()
            done = False
            try:
                async with asyncio.timeout(wall_seconds):
                    answer = await worker.ask(items)
                done = True
            except TimeoutError as error:
                raise WorkerFailure("timeout", f"no end within {wall_seconds:.0f} s") from error
            except (OSError, EOFError) as error:
                raise WorkerFailure("killed", "the process was ended by its limits or from outside") from error
            finally:
                if done and not isinstance(answer, MemoryError) and worker.tasks < self._limits.tasks_per_process:
                    self._idle.append(worker)
                else:
                    worker.end()
        if isinstance(answer, MemoryError):
            raise WorkerFailure("memory", "address space used up")
        return [value if fine else WorkerFailure(*value) for fine, value in answer]

    async def _new_worker(self) -> _Worker:
        try:
            return await asyncio.to_thread(self._nursery.worker)
        except (EOFError, OSError, TimeoutError) as error:
            self._nursery.end()
            self._nursery = _Nursery(self._plan)
            raise Transient(f"the worker processes do not work: {error or type(error).__name__}", retry_after=1) from error

    def retire(self) -> None:
        """Take no more work, but let what was given end; the processes go away by themselves."""
        self._retired = True
        if not self._at_work:
            self.close()

    def close(self) -> None:
        """Stop the workers at once; work in progress is given up (it is idempotent)."""
        self._stay()
        self._end_idle()
        self._nursery.end()

    def _stay(self) -> None:
        if self._rest is not None:
            self._rest.cancel()

    def _come_to_rest(self) -> None:
        self._end_idle()
        memory.give_back()

    def _end_idle(self) -> None:
        for worker in self._idle:
            worker.end()
        self._idle.clear()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a nursery needs to know."""

    work: str
    limits: WorkerLimits
    prepare: str | None
    arguments: tuple[Any, ...]
    warm_up: str | None


class _Worker:
    """The service's end of one worker."""

    def __init__(self, sock: socket.socket, pid: int, nursery: _Nursery) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._pid = pid
        self._nursery = nursery
        self.tasks = 0

    async def ask(self, items: Sequence[Any]) -> Any:
        """The answers to one batch, or the MemoryError that stopped it; EOFError or OSError when the process has ended."""
        self.tasks += 1
        loop, payload = asyncio.get_running_loop(), pickle.dumps(list(items), pickle.HIGHEST_PROTOCOL)
        await loop.sock_sendall(self._sock, _LENGTH.pack(len(payload)))
        await loop.sock_sendall(self._sock, payload)
        (size,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
        return pickle.loads(await self._exactly(size))  # noqa: S301 - our own process wrote it

    async def _exactly(self, size: int) -> bytearray:
        loop, data, at = asyncio.get_running_loop(), bytearray(size), 0
        view = memoryview(data)
        while at < size:
            got = await loop.sock_recv_into(self._sock, view[at:])
            if not got:
                raise EOFError
            at += got
        return data

    def end(self) -> None:
        self._sock.close()
        self._nursery.bury(self._pid)


class _Nursery:
    """The service's end of the process that workers are forked from."""

    def __init__(self, plan: _Plan) -> None:
        self._pipe, other = multiprocessing.Pipe()
        # A child of a process with threads may inherit locks that nobody will ever release.
        start = ForkProcess if threading.active_count() == 1 else SpawnProcess
        if start is ForkProcess:
            gc.freeze()  # or a collection in either process would write to, and so double, every page they share
        self._process = start(target=_tend, args=(other, plan), name="postsale-nursery", daemon=True)
        self._process.start()
        other.close()
        self._patience = plan.limits.patience_seconds
        self._guard = threading.Lock()
        self._sending = threading.Lock()  # an order that has a socket with it is two messages
        self._prepared: tuple[bool, Any] | None = None

    def prepared(self) -> Any:
        with self._guard:
            fine, value = self._await_prepared()
        if not fine:
            raise value
        return value

    def worker(self) -> _Worker:
        """Fork one more. EOFError, OSError or TimeoutError when the nursery is not there (any more)."""
        with self._guard:
            fine, value = self._await_prepared()
            if not fine:
                raise OSError(str(value)) from value
            ours, theirs = socket.socketpair()
            with theirs, self._sending:
                self._pipe.send(("fork", None))
                send_handle(self._pipe, theirs.fileno(), self._process.pid)
            return _Worker(ours, self._answer(), self)

    def bury(self, pid: int) -> None:
        """Have a worker killed, if need be, and forgotten."""
        with self._sending, suppress(OSError):  # a nursery that has ended has taken its workers along
            self._pipe.send(("bury", pid))

    def end(self) -> None:
        """Take the nursery and its workers away."""
        self._pipe.close()  # it hears of that and kills what it forked
        self._process.join(_LAST_WORDS_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _await_prepared(self) -> tuple[bool, Any]:
        if self._prepared is None:
            self._prepared = self._answer()
        return self._prepared

    def _answer(self) -> Any:
        if not self._pipe.poll(self._patience):
            raise TimeoutError(f"no answer within {self._patience:.0f} s")
        return self._pipe.recv()


# --------------------------------------------------------------------------- in the nursery


def _tend(pipe: Connection, plan: _Plan) -> NoReturn:
    """The nursery's life: prepare once, fork when asked, end with the service and take the workers along."""
    _leave_alone(pipe.fileno())
    children: set[int] = set()
    warm = False
    try:
        pipe.send(_prepare(plan))
        while True:
            order, pid = pipe.recv()
            if order == "fork":
                handle = recv_handle(pipe)
                if not warm:
                    _warm(plan)
                    warm = True
                child = os.fork()
                if child == 0:
                    pipe.close()
                    _serve(socket.socket(fileno=handle), plan)
                os.close(handle)
                children.add(child)
                pipe.send(child)
            elif pid in children:
                children.remove(pid)
                os.kill(pid, signal.SIGKILL)  # not reaped before, so the number is still this child's
                os.waitpid(pid, 0)
    except (EOFError, OSError):
        pass
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        os._exit(0)


def _prepare(plan: _Plan) -> tuple[bool, Any]:
    try:
        resolve_name(plan.work)
        return True, resolve_name(plan.prepare)(*plan.arguments) if plan.prepare else None
    except Exception as error:  # noqa: BLE001 - it is raised where the pool was made
        return False, error


def _warm(plan: _Plan) -> None:
    if plan.warm_up is not None:
        resolve_name(plan.warm_up)()
    gc.collect()
    memory.give_back()
    gc.freeze()  # what is shared is not written to by collections


def _leave_alone(keep: int) -> None:
    """Give up what came with a fork of the service: its files, locks and sockets, and its handling of signals."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all of us; the service ends us
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads would not survive the fork of a worker
    os.closerange(3, keep)
    os.closerange(keep + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _serve(sock: socket.socket, plan: _Plan) -> NoReturn:
    """A worker's life."""
    # systemd asks every process of the service to end at once, but what is under way is seen through
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    work, most = resolve_name(plan.work), plan.limits.memory_bytes
    gc.set_threshold(20_000, 50, 100)  # what the work leaves behind hardly holds cycles, and collections cost a tenth of it
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    status = 0
    try:
        with sock.makefile("rb") as stream:
            while head := stream.read(_LENGTH.size):
                (size,) = _LENGTH.unpack(head)
                payload = _answered(work, pickle.loads(stream.read(size)), plan.limits.cpu_seconds)  # noqa: S301 - the service wrote it
                sock.sendall(_LENGTH.pack(len(payload)))
                sock.sendall(payload)
                del payload  # or it would lie beside the next one
    except OSError:  # the service has gone, or gave this worker up
        status = 1
    finally:
        os._exit(status)


def _answered(work: Callable[[Any], Any], items: list[Any], cpu_seconds: float) -> bytes:
    """The answers to one batch, packed, or the MemoryError that stopped it."""
    try:
        return pickle.dumps(_run(work, items, cpu_seconds), pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        return _MEMORY_ERROR


def _run(work: Callable[[Any], Any], items: list[Any], cpu_seconds: float) -> list[tuple[bool, Any]]:
    """Each item under its own share of processor time."""
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
    soft = int(time.process_time() + seconds) + 1  # getrusage would count pages, too, which takes 50 times as long
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
