"""The playbook and its templates as they lie on disk, opened and checked together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daemon import resources
from daemon.config import load_playbook_toml, load_templates
from daemon.errors import ConfigError
from daemon.steps.draft import Renderer
from daemon.steps.policy import Playbook, build


@dataclass(frozen=True, slots=True)
class OpenPlaybook:
    """A playbook ready for use, and where it came from."""

    playbook: Playbook
    renderer: Renderer
    file: Path
    templates: Path


def open_playbook(file: Path | None = None, templates: Path | None = None) -> OpenPlaybook:
    """Read and check the policies; templates are compiled when they are first used.

    Without paths the shipped playbook and templates. With only a playbook file, the
    templates beside it when there are any. Raises ConfigError.
    """
    file = file or resources.playbook()
    if templates is None:
        beside = file.parent
        templates = beside if any(beside.glob("*/*/*.txt.j2")) else resources.templates()
    renderer = Renderer(load_templates(templates))
    playbook = build(load_playbook_toml(file), templates=renderer.names, file=str(file), texts=renderer.version)
    return OpenPlaybook(playbook, renderer, file, templates)


def check(opened: OpenPlaybook) -> list[ConfigError]:
    """Everything that is wrong with the templates, each with file and line; empty when all is well."""
    return [
        ConfigError(
            str(opened.templates / f"{p.template}.txt.j2"), f"line {p.line}", p.problem, "docs/playbook.md lists every value"
        )
        for p in opened.renderer.problems()
    ]


def open_checked(file: Path | None = None, templates: Path | None = None) -> OpenPlaybook:
    """As :func:`open_playbook`, and no template may be broken. For `postsale check`, start and reload.

    Raises ConfigError for the first problem; the others hang on it as ``others``.
    """
    opened = open_playbook(file, templates)
    problems = check(opened)
    if problems:
        problems[0].others = tuple(problems[1:])
        raise problems[0]
    return opened
