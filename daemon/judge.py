"""The mind in force: where its files lie, and the workers that carry it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from classifiers.artifact import open_best, signing_key
from classifiers.errors import ModelRefused
from classifiers.inference import LIVE_FILE
from daemon import log as logging
from daemon import resources
from daemon.config import Config
from daemon.edges.workers import WorkerLimits, WorkerPool
from daemon.errors import ConfigError
from daemon.tasks import MindFacts, MindFiles

log = logging.get(__name__)


class Judge:
    """The workers that carry the mind in force; reloading swaps them or changes nothing."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._files = mind_files(config)
        self._pool = self._start(self._files)
        self._facts: MindFacts | None = None

    def load(self) -> None:
        """Wait until the mind is loaded; blocks. Raises ConfigError or ModelRefused when it cannot be used."""
        self._facts = self._pool.prepared()

    @property
    def facts(self) -> MindFacts:
        if self._facts is None:
            raise RuntimeError("the mind is not loaded yet")
        return self._facts

    @property
    def workers(self) -> WorkerPool[Any, Any]:
        return self._pool

    @property
    def versions(self) -> tuple[str, str]:
        """(model, playbook)"""
        return self.facts.model_version, self.facts.playbook_version

    def reload(self) -> bool:
        """Read model, playbook and templates anew; False, and everything stays, when one cannot be used. Blocks."""
        files = mind_files(self._config)
        pool = self._start(files)
        try:
            fresh: MindFacts = pool.prepared()
        except (ConfigError, ModelRefused, OSError, EOFError) as error:
            pool.close()
            log.error("service.reload_refused", problem=str(error))
            return False
        if (fresh.model_version, fresh.playbook_version) == self.versions and files == self._files:
            pool.close()
            return True
        self._files, self._facts, self._pool, old = files, fresh, pool, self._pool
        old.retire()
        log.info("service.reloaded", model=self.versions[0], playbook=self.versions[1])
        return True

    def close(self) -> None:
        self._pool.close()

    def _start(self, files: MindFiles) -> WorkerPool[Any, Any]:
        reading = self._config.reading
        return WorkerPool(
            "daemon.mind:think",
            processes=self._config.service.workers,
            limits=WorkerLimits(reading.cpu_seconds, reading.wall_seconds, reading.memory_bytes),
            prepare="daemon.mind:prepare",
            arguments=(files, True),
            warm_up="daemon.mind:warm_up",
        )


def mind_files(config: Config) -> MindFiles:
    """Where the model to use, the playbook and the templates lie; what ships where nothing else is set.

    A live model that is refused leaves the one that was live before in force,
    and in the end the shipped one.
    """
    model, key = _best_model(config)
    return MindFiles(
        model=model,
        playbook=config.playbook.path or resources.playbook(),
        templates=config.playbook.templates or resources.templates(),
        model_key=key,
        checked=config.service.data_dir / "templates.checked",
    )


def _best_model(config: Config) -> tuple[Path, bytes | None]:
    """The folder of the model to use, and the key that it is signed with; None for the shipped one."""
    folder, shipped = config.classifier.model_dir, resources.starter_model()
    if not (folder / LIVE_FILE).exists():
        return shipped, None
    try:
        key = signing_key(folder, config.classifier.signing_key_file)
    except ModelRefused as error:
        log.error("model.refused", problem=str(error))
        return shipped, None
    opened = open_best(folder, key, shipped)
    for refused in opened.refused:
        log.error("model.refused", problem=refused)
    return opened.folder, None if opened.folder == shipped else key


def live_stamp(model_dir: Path) -> int:
    """Changes when another model is promoted; 0 when none is."""
    try:
        return (model_dir / LIVE_FILE).stat().st_mtime_ns
    except OSError:
        return 0
