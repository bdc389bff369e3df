"""Every command in the documentation exists with its options, and those that need no server are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh( no-run)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (postsale .*)$", re.MULTILINE)


def _commands() -> list[tuple[str, str]]:
    """(document, command line) for each `postsale …` line in a block."""
    found = []
    for document in DOCS:
        text = document.read_text(encoding="utf-8")
        lines = [line for _, block in BLOCK.findall(text) for line in block.splitlines()] + INDENTED.findall(text)
        found += [(document.name, line) for line in lines if re.match(r"(\w+=\S+ )?postsale ", line)]
    return found


def _help(*words: str) -> str:
    command = [sys.executable, "-m", "daemon", *words, "--help"]
    environment = {"COLUMNS": "200", "PATH": "/usr/bin:/bin", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def test_every_command_in_the_docs_exists_with_its_options() -> None:
    assert len(_commands()) > 15
    known: dict[tuple[str, ...], str] = {}
    for document, line in _commands():
        words = shlex.split(line.partition("#")[0])
        words = words[words.index("postsale") + 1 :]
        path = tuple(words[:2]) if words[0] in {"queue", "models", "playbook"} else tuple(words[:1])
        if path not in known:
            known[path] = _help(*path)
        for word in words[len(path) :]:
            if word.startswith("--"):
                assert word.partition("=")[0] in known[path], f"{document}: {line}"


def test_the_commands_of_the_operators_guide_run_as_they_stand(tmp_path: Path) -> None:
    """All blocks of the guide one after the other, in an empty folder."""
    program = tmp_path / "bin" / "postsale"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m daemon "$@"\n')
    program.chmod(0o755)
    guide = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    script = "\n".join(block for skipped, block in BLOCK.findall(guide) if not skipped)
    assert script.count("postsale ") > 10
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["sh", "-ex"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "shop" / "report" / "report.html").is_file()


@pytest.mark.parametrize("document", DOCS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target
