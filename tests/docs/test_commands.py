"""Every command in the documentation is typed as it stands, by a reader with a small shop; or it is said here why not."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
import typer
from sqlalchemy import insert, update

from daemon.cli import app
from daemon.commands import playbook, queue, training
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.store.tables import cases, feedback, outbox
from daemon.vocab import CaseState
from tests.approval import seeds
from tests.fakes.imap import FakeImap
from tests.fakes.smtp import FakeSmtp

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:postsale|make|python) [^`\n]+)`")
OURS = re.compile(r"^\s*(\w+=\S+ )?(postsale|make|python|pip|systemctl) ", re.MULTILINE)

_INSTALLS = "installs from the package index; tests/packaging installs what it would"
_HOST = "needs root and systemd; make systemd-live follows the guide on a host of its own"
_MINUTES = "takes minutes"
#: Commands that CI does not type, and why.
NOT_RUN = {
    "make demo": "sets up .venv from the package index; tests/demo runs what it calls",
    "make test": "is what runs this",
    "pip install .": _INSTALLS,
    "git clone <this repository> && cd postsale": "where it lies is the reader's to say",
    "python3 -m venv ~/postsale-venv && ~/postsale-venv/bin/pip install . && export PATH=~/postsale-venv/bin:$PATH": _INSTALLS,
    "apt-get install git make python3-venv": _HOST,
    "make install": _HOST,
    "$EDITOR /etc/postsale/config.toml": _HOST,
    "install -m 600 /dev/stdin /etc/postsale/secrets/shop.password": _HOST,
    "CREDENTIALS_DIRECTORY=/etc/postsale/secrets postsale check --config /etc/postsale/config.toml": _HOST,
    "systemctl enable --now postsale.service postsale-train.timer": _HOST,
    "systemctl status postsale": _HOST,
    "postsale login shop --config shop/config.toml": "needs a person at the provider's page; tests/edges signs in at a server of its own",
    "python -m benchmarks.reading": _MINUTES,
    "python -m benchmarks.reading_fuzz": _MINUTES,
    "python -m benchmarks.reading_fuzz --mutations 100000": _MINUTES,
}

PASSWORD = "the mailbox password"
BUYER = "someone@postbox.example"
EDIT_CONFIG = """#!/bin/sh
# What the reader changes in a new configuration: where the mail servers are.
for side in imap smtp; do
    eval "port=\\$${side}_port"
    sed -i -e "/^\\[mailboxes.$side\\]/,/^\\[/{s/^#*host = .*/host = \\"127.0.0.1\\"/; s/^#*port = .*/port = $port/; s/^#*tls = .*/tls = \\"none\\"/}" "$1"
done
"""
EDIT_REPLY = """#!/bin/sh
printf 'Guten Tag,\\n\\nes tut uns leid, dass die Vase zerbrochen ankam. Ein Kollege meldet sich dazu.\\n' > "$1"
"""


# --------------------------------------------------------------------------- what the documents say


def _lines(text: str) -> list[str]:
    """The command lines of a document's blocks, without their comments."""
    blocks = [block for info, block in FENCE.findall(text) if info == "sh"]
    typed = [re.sub(r"\s+# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in typed if line]


def _document(name: str) -> str:
    return next(d for d in DOCS if d.name == name).read_text(encoding="utf-8")


ALL_LINES = {d.name: _lines(d.read_text(encoding="utf-8")) for d in DOCS}


def _words(line: str) -> list[str]:
    """What stands behind ``postsale`` in a line; empty where it is another program's."""
    words = shlex.split(line)
    return words[words.index("postsale") + 1 :] if "postsale" in words else []


def _path(words: Sequence[str]) -> tuple[str, ...]:
    """The command's own words: ``queue list`` or ``status``."""
    return tuple(words[: 2 if words[:1] and words[0] in {"queue", "models", "playbook"} else 1])


def _command(path: Sequence[str]) -> click.Command:
    """The command of that path. Raises KeyError when there is none."""
    homes = {
        "queue": queue.app,
        "playbook": playbook.app,
        "models": training.models,
        "train": training.app,
        "evaluate": training.app,
    }
    home = homes.get(path[0], app)
    found: Any = typer.main.get_command(home)
    for word in path[1:] if path[0] in {"queue", "playbook", "models"} else path:
        found = found.commands[word]
    return found  # type: ignore[no-any-return]


def _spoken_of() -> Iterator[tuple[str, str]]:
    """(document, command) for every command in a block or in running text."""
    for document in DOCS:
        yield from ((document.name, line) for line in ALL_LINES[document.name])
        yield from ((document.name, found) for found in INLINE.findall(document.read_text(encoding="utf-8")))


def test_every_command_in_the_docs_exists_with_its_options() -> None:
    seen = 0
    for document, line in _spoken_of():
        words = _words(line)
        if words and words[0] != "DIR":
            command = _command(_path(words))
            options = {o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts)} | {
                "--help",
                "-h",
            }
            used = {w.partition("=")[0] for w in words if w.startswith("-")}
            assert used <= options, f"{document}: {line}"
            seen += 1
        elif line.startswith("make "):
            assert re.search(rf"^{re.escape(shlex.split(line)[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif line.startswith("python -m "):
            assert importlib.util.find_spec(shlex.split(line)[2]), f"{document}: {line}"
        elif line.startswith("python "):
            assert (ROOT / shlex.split(line)[1]).is_file(), f"{document}: {line}"
    assert seen > 40


def test_every_command_is_typed_or_excused_and_no_excuse_is_stale() -> None:
    everything = {line for lines in ALL_LINES.values() for line in lines}
    assert set(NOT_RUN) <= everything
    assert all(NOT_RUN.values())
    to_type = {name for name, lines in ALL_LINES.items() if set(lines) - set(NOT_RUN)}
    assert to_type == set(SCENES)
    for name, scene in SCENES.items():
        assert set(scene.said) <= set(ALL_LINES[name]) - set(NOT_RUN), f"{name}: what it should say is of no command there"


def test_what_running_text_names_is_typed_somewhere() -> None:
    known = {_path(_words(line)) for lines in ALL_LINES.values() for line in lines if _words(line)}
    for document, line in _spoken_of():
        path = _path(_words(line))
        assert not path or path in known or path == ("queue",), f"{document}: {line} is in no block of commands"


@pytest.mark.parametrize("document", DOCS, ids=lambda p: p.name)
def test_no_command_hides_in_another_block(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for info, block in FENCE.findall(text):
        assert info == "sh" or not OURS.search(block), block
    indented = "\n".join(re.findall(r"^(?: {4}|\t)(.*)$", FENCE.sub("", text), re.MULTILINE))
    assert not OURS.search(indented), indented


@pytest.mark.parametrize("document", DOCS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


# --------------------------------------------------------------------------- the readers


class Scene:
    """A reader of one document: an empty home, mail servers, and what the document promises of its commands."""

    #: Command → what its output must match.
    said: ClassVar[Mapping[str, str]] = {}

    def __init__(self, home: Path, imap: FakeImap, smtp: FakeSmtp) -> None:
        self.home = self.cwd = home
        self.imap = imap
        self.smtp = smtp
        (home / "bin").mkdir()
        self._program("postsale", f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m daemon "$@"\n')
        self._program("edit-config", EDIT_CONFIG)
        self._program("edit-reply", EDIT_REPLY)
        self.environment = {
            "PATH": f"{home / 'bin'}:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "EDITOR": "edit-config",
            "imap_port": str(imap.port),
            "smtp_port": str(smtp.port),
        }
        self.prepare()

    def _program(self, name: str, text: str) -> None:
        (self.home / "bin" / name).write_text(text)
        (self.home / "bin" / name).chmod(0o755)

    def prepare(self) -> None:
        """What the document takes for granted."""

    def before(self, line: str) -> None:
        """What the reader does in the meantime, before this command."""

    def after(self, line: str) -> None:
        """What has to be so after this command."""

    def type(self, line: str, *, code: int = 0) -> str:
        """Run one line; returns its output. It has to end with that exit status."""
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.cwd, env=self.environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def serve(self, line: str, until: Callable[[], bool]) -> str:
        """Run the service until something has come about; returns its log. It has to end well at SIGTERM."""
        with (self.home / "service.log").open("w+") as log:
            service = subprocess.Popen(shlex.split(line), cwd=self.cwd, env=self.environment, stdout=log, stderr=log)
            try:
                end = time.monotonic() + 60
                while not until():
                    assert service.poll() is None, (self.home / "service.log").read_text()
                    assert time.monotonic() < end, (self.home / "service.log").read_text()
                    time.sleep(0.05)
                service.send_signal(signal.SIGTERM)
                assert service.wait(30) == 0
            finally:
                if service.poll() is None:
                    service.kill()
                    service.wait()
            log.seek(0)
            return log.read()

    def go(self, lines: Sequence[str]) -> None:
        """Type them all."""
        for line in lines:
            self.before(line)
            output = self.serve_a_mail(line) if _words(line)[:1] == ["run"] else self.type(line)
            assert re.search(self.said.get(line, ""), output), f"{line}\n{output}"
            self.after(line)

    def serve_a_mail(self, line: str) -> str:
        """The service takes its first look, then a buyer writes, and shadow mode keeps what it would have said."""
        posted, before = False, len(self.imap.commands)

        def settled() -> bool:
            nonlocal posted
            if not posted and any(b"IDLE" in command for command in self.imap.commands[before:]):
                self.imap.add(_mail("Hello, before I buy: can I return the lamp if it does not fit?"))
                posted = True
            return "case.settled" in (self.home / "service.log").read_text()

        return self.serve(line, settled)


def _mail(words: str, *, sender: str = BUYER, label: str = "", number: int = 0) -> bytes:
    name = f"{label}.{number}" if label else "first"
    return (
        f"From: Someone <{sender}>\r\nTo: service@shop.example\r\nSubject: A question\r\n"
        f"Date: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} +0000\r\nMessage-ID: <{name}@postbox.example>\r\n\r\n{words}\r\n"
    ).encode()


class FirstSteps(Scene):
    """README.md: from nothing to a service in shadow mode."""

    said: ClassVar[Mapping[str, str]] = {
        "postsale init shop --address service@shop.example --provider gmail --approver li@shop.example": r"shop is ready",
        "postsale check --config shop/config.toml": r"ok +shop imap[\s\S]*ok +shop smtp",
        "postsale explain mail.eml --config shop/config.toml": r"other/presale",
        "postsale run --config shop/config.toml": r'"mode": "shadow"[\s\S]*"state": "shadowed"',
    }

    def prepare(self) -> None:
        (self.home / "mail.eml").write_bytes(_mail("Hello, before I buy: can I return the lamp if it does not fit?"))

    def after(self, line: str) -> None:
        assert not [t for t in self.smtp.taken if BUYER in t.recipients]  # shadow mode sends buyers nothing


class Operating(Scene):
    """docs/operating.md, in the reader's own folder."""

    said: ClassVar[Mapping[str, str]] = {
        "postsale check --offline --config shop/config.toml": r"ok +database",
        "postsale check --config shop/config.toml": r"ok +shop imap[\s\S]*ok +shop smtp",
        "postsale replay --since 30d --config shop/config.toml": r"shop: 3 messages of the last 30 days[\s\S]*by policy[\s\S]*by label",
        "postsale pause --config shop/config.toml": r"^sending to buyers is stopped$",
        "postsale resume --config shop/config.toml": r"^sending goes on$",
        "postsale status --config shop/config.toml": r"mode +shadow[\s\S]*1 shadowed",
        "postsale queue list --config shop/config.toml": r"nothing waits",
        "postsale report --days 7 --config shop/config.toml": r"1 messages of buyers",
        "postsale queue show 1 --why --config shop/config.toml": r"before I buy[\s\S]*policy",
        "postsale backup backup.tar.gz --config shop/config.toml": r"written to backup.tar.gz",
        "postsale restore backup.tar.gz --force --config shop/config.toml": r"sending is paused",
        f"postsale erase {BUYER} --yes --config shop/config.toml": r"^1 cases? emptied",
        "postsale models list --config shop/config.toml": r"the shipped one is used",
    }

    def before(self, line: str) -> None:
        if line.startswith("postsale pause"):  # the service has run for a while by then
            self.serve_a_mail("postsale run --config shop/config.toml")

    def after(self, line: str) -> None:
        if line.startswith("postsale init"):  # imap.shop.example is the reader's own server
            self.type("edit-config shop/config.toml")
            for number, words in enumerate(("Where is my parcel? Order 20418.", "It arrived broken.", "Thanks a lot!")):
                self.imap.add(_mail(words, label="older", number=number))
        elif line.startswith("postsale replay"):
            assert not any(c.startswith((b"UID STORE", b"STORE", b"APPEND")) for c in self.imap.commands)
            assert not self.smtp.taken
        elif "--json" in line:
            assert json.loads(self.type(line))["last_day"] == {"shadowed": 1}
        elif "--out shop/report" in line:
            assert (self.cwd / "shop/report/report.html").is_file()
            assert (self.cwd / "shop/report/report.csv").is_file()
        elif line.startswith("postsale export"):
            case = json.loads((self.cwd / "case-1.json").read_text())
            assert case["case"]["sender"] == BUYER
            assert BUYER in json.dumps(case["raw_mail"])
        elif line.startswith("postsale restore"):
            assert json.loads(self.type("postsale status --json --config shop/config.toml"))["paused"]


class Inside(Scene):
    """A reader who sits in the folder that ``init`` made."""

    def prepare(self) -> None:
        self.type("postsale init shop")
        self.type("edit-config shop/config.toml")
        self.cwd = self.home / "shop"
        self.database_file = self.cwd / "data" / "postsale.db"
        self.fill()

    def fill(self) -> None:
        """What is in the database by then."""

    def open(self) -> Database:
        return Database(f"sqlite:///{self.database_file}")


class Playbook(Inside):
    """docs/playbook.md, where init put the playbook."""

    said: ClassVar[Mapping[str, str]] = {"postsale playbook check": r" 0 problems in \S+/shop/templates\n"}

    def after(self, line: str) -> None:
        if line == "postsale playbook check":  # it is the reader's own copy that is looked at
            template = self.cwd / "templates/en/logistics_question/tracking.txt.j2"
            whole = template.read_text()
            template.write_text(whole + "{{ order.nonsense }}\n")
            assert "en/logistics_question/tracking" in self.type(line, code=1)
            template.write_text(whole)


class Training(Inside):
    """docs/training.md, on mail of another trade, since the starter corpus takes its time to be learned."""

    said: ClassVar[Mapping[str, str]] = {
        "postsale train --from feedback --config config.toml": r"36 messages[\s\S]*promoted \d{8}",
        "postsale train --from mail/ --from old.jsonl": r"48 messages[\s\S]*live model[\s\S]*report: .*report\.html\n(not )?promoted",
        "postsale evaluate --on mail.jsonl --model live": r"12 messages: accuracy",
        "postsale models list": r"live +\d{8}",
        "postsale models show VERSION": r"36 messages, 36 of your own",
        "postsale models promote VERSION": r"^promoted \d{8}",
        "postsale models rollback": r"is live again",
    }
    asked: ClassVar[Mapping[str, str]] = {
        "opening_hours": "when is the {} shop open on a {} evening",
        "parking": "where can i park a {} car near the {} gate",
        "menu": "do you serve {} soup with {} bread",
    }
    colours = ("red", "green", "blue", "white", "black", "brown")

    def messages(self, count: int) -> Iterator[tuple[str, str]]:
        """(label, words), ``count`` of each label."""
        for label, words in self.asked.items():
            for number in range(count):
                first, second = divmod(number, len(self.colours))
                yield label, words.format(self.colours[first], self.colours[second])

    def fill(self) -> None:
        database = self.open()
        upgrade(database)
        rows = [
            {"at": datetime.now(UTC), "by": "li", "subject": "", "text": words, "language": "en", "thread_id": None, "predicted": "other", "final": label}
            for label, words in self.messages(12)
        ]  # fmt: skip
        with_cases = [
            {**row, "case_id": database.write_now(lambda c: seeds.add_case(c, now=datetime.now(UTC)))} for row in rows
        ]
        database.write_now(lambda c: c.execute(insert(feedback), with_cases))
        database.close()
        every = list(self.messages(16))
        for number, (label, words) in enumerate(every):
            if number % 4:
                folder = self.cwd / "mail" / label
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number}.eml").write_bytes(_mail(words, label=label, number=number))
        held_out = [json.dumps({"text": words, "label": label}) for label, words in every[::4]]
        for name in ("old.jsonl", "mail.jsonl"):
            (self.cwd / name).write_text("\n".join(held_out) + "\n")

    def type(self, line: str, *, code: int = 0) -> str:
        made = sorted(p.name for p in (self.home / "shop/models/versions").glob("*"))
        return super().type(line.replace("VERSION", made[0]) if made else line, code=code)


class Approval(Inside):
    """docs/approval.md: each command on a case 1234 that is in the state for it."""

    said: ClassVar[Mapping[str, str]] = {
        "postsale queue list": r"1234 +awaiting_approval[\s\S]*1235 +awaiting_approval",
        "postsale queue show 1234 --why": r"zerbrochen[\s\S]*draft 1[\s\S]*model[\s\S]*policy[\s\S]*history[\s\S]*asked",
        "postsale queue approve 1234 1235": r"case 1234: approved \(leaves at .*\)\ncase 1235: approved",
        'postsale queue reject 1234 --reason "wrong amount"': r"case 1234: rejected",
        "postsale queue edit 1234": r"case 1234: edited \(leaves at",
        "postsale queue label 1234 complaint/product": r"case 1234: relabelled",
        "postsale queue hold 1234 --for 4h": r"case 1234: held",
        "postsale queue release 1234": r"case 1234: released",
        "postsale queue take 1234": r"case 1234: taken",
        "postsale queue resend 1234": r"case 1234: resent",
        "postsale queue done 1234": r"case 1234: confirmed",
    }

    def fill(self) -> None:
        now, raw = (
            datetime.now(UTC),
            _mail("Guten Tag, die Vase kam zerbrochen an. Ich möchte sie zurückgeben.", sender=seeds.BUYER),
        )
        database = self.open()
        upgrade(database)
        for number in (1234, 1235):
            database.write_now(lambda c, n=number: seeds.add_case(c, now=now, uid=n, id=n, raw=raw))  # type: ignore[misc]
            database.write_now(lambda c, n=number: seeds.add_draft(c, n, now=now))  # type: ignore[misc]
        database.close()
        shutil.copy(self.database_file, self.home / "awaiting.db")
        self.environment["EDITOR"] = "edit-reply"

    def before(self, line: str) -> None:
        if "release" in line:  # ends the hold of the command above it
            return
        self.database_file.unlink()
        for extra in ("-wal", "-shm"):
            Path(f"{self.database_file}{extra}").unlink(missing_ok=True)
        shutil.copy(self.home / "awaiting.db", self.database_file)
        if "resend" in line or "done" in line:
            self.type("postsale queue approve 1234")
            database = self.open()
            database.write_now(
                lambda c: c.execute(update(cases).where(cases.c.id == 1234).values(state=CaseState.UNCERTAIN.value))
            )
            database.write_now(lambda c: c.execute(update(outbox).values(state="needs_human")))
            database.close()


SCENES: dict[str, type[Scene]] = {
    "README.md": FirstSteps,
    "operating.md": Operating,
    "playbook.md": Playbook,
    "training.md": Training,
    "approval.md": Approval,
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("document", SCENES)
def test_the_commands_of_a_document_do_what_it_says(document: str, tmp_path: Path) -> None:
    """All of them one after the other, in one home; each has to end well."""
    imap, smtp = FakeImap(password=PASSWORD), FakeSmtp(password=PASSWORD)
    try:
        SCENES[document](tmp_path, imap, smtp).go([line for line in ALL_LINES[document] if line not in NOT_RUN])
    finally:
        imap.close()
        smtp.close()
