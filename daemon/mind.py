"""Loads what judging needs from files, and applies it inside a worker process.

The worker's two entry points, :func:`think` and :func:`prepare`, are module
level so that a fresh process can import them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from classifiers import inference
from daemon import pipeline
from daemon.pipeline import Circumstances, Mind
from daemon.playbook import open_checked, open_playbook
from daemon.vocab import Identity, Outcome, Reading


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


def load_mind(files: MindFiles, *, checked: bool = False) -> Mind:
    """Model, playbook and templates, ready to use.

    ``checked`` looks through every template first, as a start, a reload and `postsale check` do;
    otherwise a broken one shows when it is used. Raises ConfigError for a playbook or template that
    cannot be used, and classifiers.errors.ModelRefused for a model.
    """
    opened = (open_checked if checked else open_playbook)(files.playbook, files.templates)
    return Mind(model=inference.load(files.model, key=files.model_key), playbook=opened.playbook, renderer=opened.renderer)


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
