"""The house as documented is the house as built."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import pytest

import daemon
from daemon.store.transitions import CASE_MOVES, DELIVERY_MOVES
from daemon.vocab import CaseState, DeliveryState

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def drawn(section: str) -> set[tuple[str, str]]:
    block = PAGE.split(f"## {section}")[1].split("```mermaid")[1].split("```")[0]
    return set(re.findall(r"^ *(\w+) --> (\w+)$", block, re.MULTILINE))


@pytest.mark.parametrize(
    ("section", "table", "states"),
    [("States of a case", CASE_MOVES, CaseState), ("States of a delivery", DELIVERY_MOVES, DeliveryState)],
)
def test_the_diagram_shows_every_arrow_of_the_table(
    section: str, table: Mapping[StrEnum, frozenset[StrEnum]], states: type[StrEnum]
) -> None:
    arrows = {(from_.value, to.value) for from_, ends in table.items() for to in ends}
    assert drawn(section) == arrows
    assert set(table) == set(states)


def test_every_file_named_in_the_table_of_places_exists() -> None:
    table = PAGE.split("## To change …")[1].split("## Where")[0]
    places = [p for p in re.findall(r"`([\w./<>-]+)`", table) if "/" in p or p.endswith(".py")]
    assert len(places) > 10
    for place in places:
        plain = re.sub(r"<[^>]+>/?.*", "", place)
        assert (ROOT / plain).exists() or (ROOT / "daemon" / plain).exists(), place


def test_daemon_is_ours_and_python_daemon_is_not_installed() -> None:
    assert daemon.__file__ is not None
    assert Path(daemon.__file__).parent == ROOT / "daemon"
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    assert "python-daemon" not in listed.stdout


def test_labelling_needs_no_scikit_learn() -> None:
    code = "import sys, daemon.app, daemon.mind, daemon.pipeline; assert not {'sklearn', 'scipy', 'skops'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
