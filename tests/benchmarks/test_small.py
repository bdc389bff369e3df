"""The measurements themselves keep working: each runs small, on real servers, and says what it has to say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, corpus
from tests.conftest import left_out
from tests.servers import NotInstalled, PostgresServer

ROOT = Path(__file__).parents[2]


def test_the_corpus_is_the_same_every_time_and_looks_like_mail() -> None:
    from email import message_from_bytes
    from email.policy import default

    bodies = [raw.partition(b"Subject: ")[2] for raw in corpus.mails(60)]
    assert [raw.partition(b"Subject: ")[2].partition(b"\r\n")[0] for raw in corpus.mails(60)] == [
        body.partition(b"\r\n")[0] for body in bodies
    ]
    parsed = [message_from_bytes(raw, policy=default) for raw in corpus.mails(60)]
    assert len({mail["Message-ID"] for mail in parsed}) == 60
    assert len({mail["From"] for mail in parsed}) == 60
    assert sum(1 for mail in parsed if any(part.get_content_type() == "image/jpeg" for part in mail.walk())) == 2
    assert not any(mail.defects for mail in parsed)


def test_a_section_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    bench.write_page("One", "first", page=page)
    bench.write_page("Two", "second", page=page)
    bench.write_page("One", "third", page=page)
    text = page.read_text("utf-8")
    assert "first" not in text
    assert text.index("third") < text.index("second")
    assert text.count("## ") == 2


def run(script: str, *arguments: str) -> Any:
    """What a measurement prints as JSON."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", *arguments, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.mailservers
@pytest.mark.timeout(240)
def test_a_small_backlog_is_measured() -> None:
    if shutil.which("mbsync") is None or shutil.which("getmail") is None:
        pytest.skip("mbsync and getmail are not installed; the measurement compares with them")
    result = run("backlog", "--mails", "40", "--getmail-mails", "10", "--runs", "1")
    [one] = result["service"]
    assert sum(one["outcomes"].values()) == 40
    assert one["outcomes"].get("awaiting_approval", 0) > 0
    assert "broken" not in one["outcomes"]
    assert one["wall"] > 0
    assert result["mbsync"][0][0] > 0
    assert result["getmail"][0][0] > 0


@pytest.mark.mailservers
@pytest.mark.timeout(240)
def test_a_little_sending_is_measured() -> None:
    result = run("sending", "--replies", "20", "--connections", "2", "--runs", "1")
    assert [each["server"] for each in result["runs"]] == ["Postfix", "smtp-sink"]
    assert all(each["ours"] > 0 and each["theirs"] > 0 for each in result["runs"])


@pytest.mark.mailservers
@pytest.mark.timeout(240)
def test_the_latency_of_a_few_mails_is_measured() -> None:
    result = run("latency", "--messages", "2")
    assert [len(result[name]) for name in ("service", "minimal")] == [2, 2]
    for each in result["service"]:
        assert each["stored"] < each["decided"] < each["claimed"] < each["granted"] < each["accepted"] == each["own"]


@pytest.mark.mailservers
@pytest.mark.timeout(240)
def test_start_and_weight_are_measured() -> None:
    result = run("start", "--runs", "1")
    assert result["start"]["modules"] > result["help"]["modules"] > 0
    assert result["idle_mb"] >= result["idle_main_mb"] > 0


@pytest.mark.mailservers
@pytest.mark.timeout(240)
def test_a_few_idle_mailboxes_are_measured() -> None:
    one, more = run("idle", "--mailboxes", "3", "--seconds", "1")
    assert (one["mailboxes"], more["mailboxes"]) == (1, 3)
    assert more["threads"] > one["threads"] > 0
    assert more["files"] > one["files"] > 0


def test_commits_are_measured() -> None:
    [each] = run("commits", "--commits", "64", "--rounds", "1")["rounds"]
    assert set(each) == {"fdatasync", "one_by_one", "at_once"}
    assert min(each.values()) > 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "flags", [[], pytest.param(["--postgresql"], marks=pytest.mark.postgresql)], ids=["sqlite", "postgresql"]
)
def test_a_small_scale_is_measured(flags: list[str]) -> None:
    if flags:
        try:
            PostgresServer().remove()
        except NotInstalled as error:
            left_out(error)
    result = run("scale", "--cases", "400", "--small", "200", "--repeats", "1", "--plans", *flags)
    assert len(result["times_ms"]) == 9
    assert all(len(found["large"]) == 1 and found["large"][0] > 0 for found in result["times_ms"].values())
