"""`postsale queue`: the same decisions from a shell, with who and how on record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from daemon.commands.queue import app
from daemon.errors import PostsaleError
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.vocab import CaseState
from tests.approval import seeds

CONFIG = """
[service]
data_dir = "data"

[[mailboxes]]
name = "shop"
address = "shop@shop.example"
[mailboxes.approval]
approvers = ["anna"]
authserv_id = "mx.shop.example"
staff_auth = ["dmarc"]

[[approvers]]
name = "anna"
address = "anna@staff.example"
"""

RAW = (
    b"From: Keller <b7x2k9@marketplace.amazon.de>\r\nTo: shop@shop.example\r\nSubject: Vase kaputt (Bestellung: 302-1234567-1234567)\r\n"
    b"Message-ID: <m1@amazon.example>\r\nDate: Mon, 02 Nov 2026 09:00:00 +0000\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    b"Guten Tag, die Vase kam zerbrochen an. Ich schicke sie zurueck.\r\n"
)


class Shell:
    """A configuration, its store, and a way to run commands on them."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG)
        (folder / "data").mkdir()
        self.database = Database(f"sqlite:///{folder}/data/postsale.db")
        upgrade(self.database)
        self.now = datetime.now(UTC)

    def case(self, **values: Any) -> int:
        """A case with a pending draft."""

        def seed(connection: Any) -> int:
            case_id = seeds.add_case(connection, now=self.now, raw=RAW, **values)
            seeds.add_draft(connection, case_id, now=self.now)
            return case_id

        return self.database.write_now(seed)

    def __call__(self, *words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*words, "--config", str(self.config), "--json"], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def text(self, *words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--config", str(self.config)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.database.close()


def test_list_shows_what_waits(shell: Shell) -> None:
    first, second = shell.case(), shell.case(deadline=timedelta(hours=2))
    assert [row["id"] for row in shell("list")] == [second, first]
    assert "return_request/damaged" in shell.text("list")
    assert shell("list", "--state", "sent") == []


def test_approve_records_who_and_how(shell: Shell) -> None:
    case_id = shell.case()
    (done,) = shell("approve", str(case_id))
    assert (done["effect"], done["state"]) == ("approved", "queued")
    (again,) = shell("approve", str(case_id), code=1)
    assert (again["effect"], again["reason"]) == ("refused", "already_decided")
    found = shell("show", str(case_id), "--why")
    event = found["events"][-1]
    assert event["actor"].startswith("cli:")
    assert event["detail"]["proof"] == "command line"
    assert found["deliveries"][0]["recipient"] == seeds.BUYER
    assert "mime" not in found["deliveries"][0]


def test_a_revision_that_was_replaced_is_not_approved(shell: Shell) -> None:
    case_id = shell.case()
    shell.database.write_now(lambda c: seeds.add_draft(c, case_id, now=shell.now, revision=2))
    (done,) = shell("approve", str(case_id), "--revision", "1", code=1)
    assert done["reason"] == "replaced"


def test_every_decision_has_its_command(shell: Shell) -> None:
    rejected, held, taken, labelled = (shell.case() for _ in range(4))
    assert shell("reject", str(rejected), "--reason", "wrong")[0]["effect"] == "rejected"
    assert shell("hold", str(held), "--for", "2h")[0]["effect"] == "held"
    assert shell("release", str(held))[0]["effect"] == "released"
    assert shell("take", str(taken))[0]["effect"] == "taken"
    assert shell("done", str(taken))[0]["effect"] == "closed"
    assert shell("label", str(labelled), "complaint/product")[0]["effect"] == "relabelled"
    assert shell("release", str(rejected))[0]["effect"] == "released"
    assert shell("resend", str(rejected), code=1)[0]["effect"] == "refused"
    assert shell("approve", "99999", code=1)[0]["reason"] == "no_such_case"


def test_a_label_that_nobody_knows_is_a_slip_unless_it_is_said_to_be_new(shell: Shell) -> None:
    case_id = shell.case()
    with pytest.raises(PostsaleError, match=r"complaint/prodcut is no label; there are cancellation_request, .*--new"):
        shell("label", str(case_id), "complaint/prodcut")
    with pytest.raises(PostsaleError, match="two words, at least is no label"):
        shell("label", str(case_id), "two words, at least", "--new")
    assert shell("label", str(case_id), "wholesale", "--new")[0]["effect"] == "relabelled"


def test_show_names_model_policy_and_scores(shell: Shell) -> None:
    case_id = shell.case(
        model_version="m-7", playbook_version="p-3", policy="returns_damaged", template="return_request/damaged"
    )
    text = shell.text("show", str(case_id), "--why")
    for word in ("m-7", "p-3", "returns_damaged", "zerbrochen", "delivered", "es tut uns leid"):
        assert word in text


def test_edit_makes_a_guarded_frozen_revision(shell: Shell, tmp_path: Path) -> None:
    case_id = shell.case()
    text = tmp_path / "reply.txt"
    text.write_text("Guten Tag,\n\nwir senden Ihnen morgen eine neue Vase.\n\nIhr Vasenhaus\n", encoding="utf-8")
    (done,) = shell("edit", str(case_id), "--file", str(text))
    assert (done["effect"], done["revision"], done["state"]) == ("edited", 2, CaseState.QUEUED.value)
    draft = shell("show", str(case_id))["drafts"][-1]
    assert "neue Vase" in draft["body"]
    assert draft["author"].startswith("cli:")


def test_edit_takes_the_editors_text(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case_id = shell.case()
    script = tmp_path / "editor.sh"
    script.write_text("#!/bin/sh\nprintf 'Guten Tag,\\n\\nwir melden uns bis Freitag bei Ihnen.\\n' > \"$1\"\n")
    script.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(script))
    monkeypatch.delenv("VISUAL", raising=False)
    (done,) = shell("edit", str(case_id))
    assert done["effect"] == "edited"
