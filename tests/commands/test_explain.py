"""``postsale explain``: the documented fields, one line per file, and no file that stops the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIELDS = [
    "file", "message_id", "from", "subject", "marketplace", "kind", "language", "text", "attachments", "order_ids",
    "gate", "prediction", "flags", "facts", "decision", "draft", "guard", "error",
]  # fmt: skip
MAIL = """\
Return-Path: <oliver.marsh@postbox.example>
Authentication-Results: mx.shop.example; dmarc=pass header.from=postbox.example; dkim=pass header.d=postbox.example
From: Oliver Marsh <oliver.marsh@postbox.example>
To: service@shop.example
Subject: Order #20418
Message-ID: <one@postbox.example>
Date: Mon, 02 Nov 2026 09:00:00 +0000
Content-Type: text/plain; charset=utf-8

Hello, could you tell me when my bowls will arrive? The order number is #20418.

Oliver
"""


def _explain(*words: str, given: bytes | None = None) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "daemon", "explain", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, timeout=100, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    path = tmp_path / "one.eml"
    path.write_text(MAIL)
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    subprocess.run([sys.executable, "-m", "daemon", "init", str(folder)], cwd=ROOT, check=True, capture_output=True)
    config = (folder / "config.toml").read_text()
    columns = '{order_id = "Order", state = "Status", eta = "Expected", tracking = "Tracking", carrier = "Carrier", buyer_addr = "Mail"}'
    config = config.replace('path = "orders"\n', f'path = "orders"\nshop = "own"\ncolumns = {columns}\n')
    (folder / "config.toml").write_text(config)
    (folder / "orders" / "own.csv").write_text(
        "Order,Status,Expected,Tracking,Carrier,Mail\n#20418,shipped,2026-11-05,JJD000390011223344556,DHL,oliver.marsh@postbox.example\n"
    )
    return folder / "config.toml"


def test_exactly_the_documented_fields_stand_in_a_record(mail: Path) -> None:
    status, [record], errors = _explain(str(mail))
    assert (status, errors) == (0, "")
    assert list(record) == FIELDS
    assert set(record["gate"]) == {"verdict", "reason", "hits"}
    assert {"label", "sublabel", "confidence", "scores", "abstained", "terms"} <= set(record["prediction"])
    assert {"policy", "mode", "template", "reasons"} <= set(record["decision"])
    assert (record["from"], record["language"], record["kind"]) == ("oliver.marsh@postbox.example", "en", "buyer")
    assert record["decision"]["mode"] in {"send", "ask", "human", "none"}


def test_a_configuration_brings_orders_and_who_is_proved(mail: Path, shop: Path) -> None:
    _, [without], _ = _explain(str(mail))
    assert (without["facts"], without["draft"]) == (None, None)
    status, [record], errors = _explain("--config", str(shop), "--now", "2026-11-02T10:00:00+00:00", str(mail))
    assert (status, record["error"]) == (0, None), errors
    assert record["facts"]["state"] == "shipped"
    assert "JJD000390011223344556" in record["draft"]["body"]
    assert record["decision"]["mode"] == "send"


def test_the_clock_can_be_fixed(mail: Path, shop: Path) -> None:
    def body(now: str) -> str:
        record = _explain("--config", str(shop), "--now", now, str(mail))[1][0]
        return str(record["decision"]) + str(record["draft"])

    assert body("2026-11-02T10:00:00Z") == body("2026-11-02T10:00:00+00:00")
    assert body("2026-11-02T10:00:00Z") != body("2026-12-24T10:00:00Z")
    assert _explain("--now", "yesterday", str(mail))[0] == 1


def test_a_bad_file_never_stops_the_rest_and_order_is_kept(mail: Path, tmp_path: Path) -> None:
    empty, binary, bomb = tmp_path / "empty.eml", tmp_path / "binary.eml", tmp_path / "bomb.eml"
    empty.touch()
    binary.write_bytes(bytes(range(256)) * 50)
    bomb.write_bytes(b"Content-Type: text/plain" + b";" * 200_000 + b"\r\nFrom: " + b'"' * 100_000 + b"\r\n\r\nhi\r\n")
    files = [str(mail), str(empty), str(tmp_path / "gone.eml"), str(binary), str(bomb), str(tmp_path), str(mail)]
    status, records, errors = _explain(*files)
    assert [r["file"] for r in records] == [
        *(str(p) for p in (mail, empty, tmp_path / "gone.eml", binary, bomb)),
    ]
    assert errors == ""
    assert status == 1  # a file could not be opened
    assert all(list(r) == FIELDS for r in records)
    assert "cannot be opened" in records[2]["error"]
    assert records[0]["error"] is None


def test_many_files_are_told_in_their_order(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.eml").write_text(MAIL.replace("<one@", f"<m{number}@"))
    status, records, _ = _explain(str(tmp_path))
    assert status == 0
    assert [r["message_id"] for r in records] == [f"<m{n}@postbox.example>" for n in range(40)]


def test_standard_input_is_a_file_too(mail: Path) -> None:
    assert _explain("-", given=mail.read_bytes())[1][0]["message_id"] == "<one@postbox.example>"


def test_it_reads_well_without_json(mail: Path) -> None:
    command = [sys.executable, "-m", "daemon", "explain", str(mail)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "logistics_question" in shown
    assert "decision" in shown


def test_a_bad_configuration_is_78(mail: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[service]\nmodee = 1\n")
    assert _explain("--config", str(tmp_path / "c.toml"), str(mail))[0] == 78
