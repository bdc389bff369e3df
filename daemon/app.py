"""The composition root: builds every part from the configuration, supervises the loops, and stops in order.

Plain values are passed down; nothing below reads the configuration file, the
environment or a global. A loop that dies takes the service with it, loudly,
and systemd starts it anew.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from classifiers.errors import ClassifierError
from daemon import log as logging
from daemon import mind, resources
from daemon.clock import Clock, SystemClock
from daemon.config import Config, RunMode, load
from daemon.edges.credentials import database_password
from daemon.edges.systemd import Notifier, watchdog_seconds
from daemon.edges.workers import WorkerLimits, WorkerPool
from daemon.errors import ConfigError, PostsaleError
from daemon.loops.advance import Advance, AdvanceSettings
from daemon.loops.loop import Loop
from daemon.loops.profiles import profiles
from daemon.loops.recheck import Recheck
from daemon.loops.replies import Reviser
from daemon.mind import MindFiles
from daemon.pipeline import Mind
from daemon.store.db import Database
from daemon.store.migrate import upgrade

log = logging.get(__name__)

#: Seconds that a reply in flight may take to end after SIGTERM.
STOP_SECONDS = 90


class AlreadyRunning(PostsaleError):
    """Another Postsale works on the same data folder."""


class Judge:
    """The mind in force and the workers that carry it; reloading swaps both or changes nothing."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._files = mind_files(config)
        self.mind: Mind = mind.load_mind(self._files)
        self._pool = self._start()

    @property
    def workers(self) -> WorkerPool[Any, Any]:
        return self._pool

    @property
    def versions(self) -> tuple[str, str]:
        """(model, playbook)"""
        return self.mind.model.version, self.mind.playbook.version

    def reload(self) -> bool:
        """Read model, playbook and templates anew; False, and everything stays, when one cannot be used."""
        try:
            files = mind_files(self._config)
            fresh = mind.load_mind(files)
        except (ConfigError, ClassifierError, OSError) as error:
            log.error("service.reload_refused", problem=str(error))
            return False
        if (fresh.model.version, fresh.playbook.version) == self.versions and files == self._files:
            return True
        self._files, self.mind, old = files, fresh, self._pool
        self._pool = self._start()
        old.retire()
        log.info("service.reloaded", model=self.versions[0], playbook=self.versions[1])
        return True

    def close(self) -> None:
        self._pool.close()

    def _start(self) -> WorkerPool[Any, Any]:
        reading = self._config.reading
        return WorkerPool(
            mind.think,
            processes=self._config.service.workers,
            limits=WorkerLimits(reading.cpu_seconds, reading.wall_seconds, reading.memory_bytes),
            prepare=mind.prepare,
            arguments=(self._files,),
            preload=("daemon.pipeline",),
        )


def mind_files(config: Config) -> MindFiles:
    """Where the model to use, the playbook and the templates lie; what ships where nothing else is set.

    A live model that is refused leaves the one that was live before in force,
    and in the end the shipped one.
    """
    folder = config.classifier.model_dir
    model, key = resources.starter_model(), None
    if (folder / LIVE_FILE).exists():
        key = signing_key(folder, config.classifier.signing_key_file)
        opened = open_best(folder, key, resources.starter_model())
        for refused in opened.refused:
            log.error("model.refused", problem=refused)
        model, key = opened.folder, None if opened.folder == resources.starter_model() else key
    return MindFiles(
        model=model,
        playbook=config.playbook.path or resources.playbook(),
        templates=config.playbook.templates or resources.templates(),
        model_key=key,
    )


def service_key(data_dir: Path) -> bytes:
    """The secret that makes Message-IDs and tokens unguessable; made once, kept beside the database."""
    file = data_dir / "service.key"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
        if len(key) < 32:
            raise ConfigError(str(file), "", "is no service key", "restore it from a backup; without it old requests are void") from None
        return key
    with os.fdopen(handle, "w", encoding="ascii") as out:
        out.write(secrets.token_hex(32) + "\n")
        out.flush()
        os.fsync(out.fileno())
    return service_key(data_dir)


class App:
    """One running service."""

    def __init__(self, config: Config, *, clock: Clock | None = None, notifier: Notifier | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.notifier = notifier or Notifier()
        self.stop = asyncio.Event()
        self.boot_id = uuid.uuid4().hex
        self._stack = AsyncExitStack()
        self.loops: list[Loop] = []

    async def __aenter__(self) -> App:
        """Lock, migrate, load the mind and build the loops; nothing is sent or read yet."""
        config, folder = self.config, self.config.service.data_dir
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_instance(folder)
        self.database = Database(config.database_url, password=database_password(config))
        self._stack.callback(self.database.close)
        await asyncio.to_thread(upgrade, self.database)
        self.judge = Judge(config)
        self._stack.callback(self.judge.close)
        self._build(service_key(folder))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def _lock_instance(self, folder: Path) -> None:
        handle = os.open(folder / "postsale.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise AlreadyRunning(f"{folder}: another Postsale is running on this folder") from error
        self._stack.callback(os.close, handle)

