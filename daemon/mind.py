"""Loads what judging needs from files, and applies it inside a worker process.

The worker's two entry points, :func:`think` and :func:`prepare`, are module
level so that a fresh process can import them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from classifiers import inference
from daemon import pipeline
from daemon.config import load_playbook_toml
from daemon.pipeline import Circumstances, Mind
from daemon.steps import policy
from daemon.steps.draft import Renderer
from daemon.vocab import Identity, Outcome, Reading

_SUFFIX = ".txt.j2"


@dataclass(frozen=True, slots=True)
class MindFiles:
    """Where model, playbook and templates lie. ``model_key`` signs models; None for the shipped one."""

    model: Path
    playbook: Path
    templates: Path
    model_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReadTask:
    raw: bytes
    identity: Identity


@dataclass(frozen=True, slots=True)
class DecideTask:
    reading: Reading
    circumstances: Circumstances


def load_mind(files: MindFiles) -> Mind:
    """Model, playbook and templates, ready to use.

    Raises ConfigError for a playbook or template that cannot be used, and
    classifiers.errors.ModelRefused for a model.
    """
    renderer = Renderer(template_sources(files.templates))
    data = load_playbook_toml(files.playbook)
    playbook = policy.build(data, templates=renderer.names, file=str(files.playbook))
    return Mind(model=inference.load(files.model, key=files.model_key), playbook=playbook, renderer=renderer)


def template_sources(folder: Path) -> dict[str, str]:
    """Every reply template below a folder, by ``<language>/<label>/<situation>``."""
    return {
        path.relative_to(folder).as_posix().removesuffix(_SUFFIX): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*" + _SUFFIX))
        if path.relative_to(folder).parts[0] != "staff"
    }


_mind: Mind | None = None


def prepare(files: MindFiles) -> None:
    """In a worker: load the mind once."""
    global _mind
    _mind = load_mind(files)


def think(task: ReadTask | DecideTask) -> Reading | Outcome:
    """In a worker: one of the two thoughts."""
    if _mind is None:
        raise RuntimeError("the worker was not prepared")
    if isinstance(task, ReadTask):
        return pipeline.read(task.raw, _mind, task.identity)
    return pipeline.decide(task.reading, task.circumstances, _mind)
