"""What an installation brings along: our own `daemon`, and no licence that forbids our users theirs."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import daemon

ROOT = Path(__file__).parents[2]


def _closure() -> dict[str, metadata.Distribution]:
    """Every distribution that an installation without extras brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pending = [Requirement(text) for text in project["dependencies"]]
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        wanted = pending.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = metadata.distribution(wanted.name)
        for text in found[key[0]].requires or []:
            below = Requirement(text)
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in wanted.extras or {""}):
                pending.append(below)
    return found


def test_daemon_is_ours_and_python_daemon_is_not_in_the_tree() -> None:
    assert "python-daemon" not in _closure()
    assert Path(daemon.__file__).is_relative_to(ROOT)


def test_no_dependency_has_a_licence_that_forbids_our_users_theirs() -> None:
    assert len(_closure()) > 30
    for name, distribution in _closure().items():
        about = distribution.metadata
        texts = [about.get("License-Expression") or "", (about.get("License") or "")[:200], *about.get_all("Classifier", [])]
        licence = " ".join(t for t in texts if t)
        strict = re.sub(r"(?i)\bL(?:esser )?GPL\S*|lesser general public license[^:]*|\(LGPL[^)]*\)|GCC-exception", "", licence)
        alternatives = re.search(r"\bOR\b", about.get("License-Expression") or "")
        assert alternatives or not re.search(r"(?i)\bA?GPL|affero|general public license", strict), f"{name}: {licence}"


def test_the_repositorys_own_versions_are_pinned_and_name_no_registry() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    assert set(_closure()) <= pinned
    assert not any("://" in line or line.startswith("-") for line in lines)
