"""Every command in the documentation exists with its options, and those that need no server are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.commands import setup

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (postsale .*)$", re.MULTILINE)


def _blocks(text: str) -> list[tuple[str, str]]:
    """(what stands behind ``sh``, lines) for each block of commands."""
    return [(info.removeprefix("sh").strip(), block) for info, block in FENCE.findall(text) if re.match(r"sh\b", info)]


def _commands() -> list[tuple[str, str]]:
    """(document, command line) for each `postsale …` line in a block."""
    found = []
    for document in DOCS:
        text = document.read_text(encoding="utf-8")
        lines = [line for _, block in _blocks(text) for line in block.splitlines()] + INDENTED.findall(text)
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


@pytest.mark.parametrize("document", DOCS, ids=lambda p: p.name)
def test_what_is_not_run_says_why_and_no_command_hides_in_another_block(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for skipped, block in _blocks(text):
        assert not skipped or re.fullmatch(r"no-run: \w.+", skipped), block
    for info, block in FENCE.findall(text):
        assert info.startswith("sh") or not re.search(r"^(\w+=\S+ )?postsale ", block, re.MULTILINE), block


def _run_blocks(document: str, folder: Path) -> None:
    """Run every block of a document that is not marked, in one shell that stops at the first failure."""
    program = folder / "bin" / "postsale"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m daemon "$@"\n')
    program.chmod(0o755)
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    script = "\n".join(block for skipped, block in _blocks(text) if not skipped)
    assert script.count("postsale ") >= 3
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["sh", "-ex"], input=script, cwd=folder, env=environment, capture_output=True, text=True, timeout=230, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.timeout(240)
def test_the_commands_of_the_operators_guide_run_as_they_stand(tmp_path: Path) -> None:
    """All blocks of the guide one after the other, in an empty folder."""
    _run_blocks("operating.md", tmp_path)
    assert (tmp_path / "shop" / "report" / "report.html").is_file()


@pytest.mark.timeout(240)
def test_the_commands_about_the_playbook_run_where_init_put_it(tmp_path: Path) -> None:
    setup.init(tmp_path, address="", approver="", provider="generic", imap="", smtp="", system=False, as_json=False, quiet=True)
    _run_blocks("playbook.md", tmp_path)


@pytest.mark.parametrize("document", DOCS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target
