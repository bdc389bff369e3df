"""The demonstration, as a newcomer runs it: the real service on real protocols."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path

import pytest

from daemon.demo import morning

ROOT = Path(__file__).parents[2]


def _demo(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", "demo", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, object]], Path, float]:
    folder = tmp_path_factory.mktemp("demo") / "kept"
    begun = time.monotonic()
    done = _demo("--json", "--keep", str(folder))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["message"]: row for row in rows}, folder, time.monotonic() - begun


def test_the_morning_is_large_and_in_seven_languages() -> None:
    script = morning.load(datetime.now(UTC))
    assert len(script.letters) >= 25
    words = {word for letter in script.letters for word in letter.key.split("-")[:2]}
    assert {"de", "en", "fr", "es", "it", "ja", "zh"} <= words
    for letter in script.letters:
        assert message_from_bytes(letter.raw)["Message-ID"] == letter.message_id


def test_every_message_comes_to_an_outcome_in_time(played: tuple[dict[str, dict[str, object]], Path, float]) -> None:
    rows, _, seconds = played
    assert set(rows) == {letter.key for letter in morning.load(datetime.now(UTC)).letters}
    assert {row["state"] for row in rows.values()} <= {
        "sent",
        "awaiting_approval",
        "human",
        "ignored",
        "declined",
        "closed",
        "withdrawn",
    }
    assert seconds < 110


def test_some_answers_go_by_themselves_some_with_an_ok_and_some_wait(
    played: tuple[dict[str, dict[str, object]], Path, float],
) -> None:
    rows = played[0]
    assert (rows["own-en-where-is-it"]["state"], rows["own-en-where-is-it"]["automatic"]) == ("sent", True)
    assert (rows["de-where-is-it"]["state"], rows["de-where-is-it"]["automatic"]) == ("sent", False)
    assert rows["de-where-is-it"]["decided_by"] == "mei-lin"
    assert (rows["fr-broken-vase"]["state"], rows["fr-broken-vase"]["decided_by"]) == ("sent", "mei-lin")
    assert rows["en-cancel-by-message"]["state"] == "awaiting_approval"  # what the approver wrote was no command


def test_danger_law_and_malice_get_no_answer_by_themselves(played: tuple[dict[str, dict[str, object]], Path, float]) -> None:
    rows = played[0]
    for key in ("en-safety", "de-lawyer", "en-stars", "phishing"):
        assert rows[key]["state"] == "human", key
    for key in ("out-of-office", "bounce", "newsletter", "notice-refund", "own-en-thanks"):
        assert rows[key]["state"] == "ignored", key
    assert rows["hostile"]["state"] in {"human", "ignored", "broken"}


def test_a_kept_folder_answers_the_operators_commands(played: tuple[dict[str, dict[str, object]], Path, float]) -> None:
    config = str(played[1] / "config.toml")
    command = [sys.executable, "-m", "daemon", "status", "--json", "--config", config]
    status = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert sum(status["last_day"].values()) >= len(played[0])
    assert status["broken"] == []


def test_no_buyer_stands_in_the_services_log(played: tuple[dict[str, dict[str, object]], Path, float]) -> None:
    log = (played[1] / "service.log").read_text(encoding="utf-8")
    assert log
    for word in ("@", "postbox.example", "Oliver", "Hélène", "vase", "smoke", "302-4471902"):
        assert word not in log, word


def test_a_folder_with_something_in_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose")
    done = _demo("--keep", str(tmp_path))
    assert (done.returncode, "is not empty" in done.stderr) == (1, True)
