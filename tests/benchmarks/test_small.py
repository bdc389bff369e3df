"""The measurements themselves keep working: each runs small, on real servers, and says what it has to say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench, corpus

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


@pytest.mark.mailservers
@pytest.mark.timeout(240)
def test_a_small_backlog_is_measured() -> None:
    if shutil.which("mbsync") is None or shutil.which("getmail") is None:
        pytest.skip("mbsync and getmail are not installed; the measurement compares with them")
    done = subprocess.run(
        [sys.executable, "benchmarks/backlog.py", "--mails", "40", "--getmail-mails", "10", "--runs", "1", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    [run] = result["service"]
    assert sum(run["outcomes"].values()) == 40
    assert run["outcomes"].get("awaiting_approval", 0) > 0
    assert "broken" not in run["outcomes"]
    assert run["wall"] > 0
    assert result["mbsync"][0][0] > 0
    assert result["getmail"][0][0] > 0
