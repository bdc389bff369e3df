"""Log lines: fixed names, no addresses, no secrets, no message text of foreign exceptions."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from daemon import log
from daemon.errors import Transient


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out = io.StringIO()
    log.configure("info", "json", stream=out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("daemon").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_ids_stand_on_every_line_beneath(stream: io.StringIO) -> None:
    with log.bound(case_id=7):
        log.get("daemon.x").info("case.ignored", reason="auto_submitted")
    line = _lines(stream)[0]
    assert (line["event"], line["case_id"], line["reason"], line["level"]) == ("case.ignored", 7, "auto_submitted", "info")


def test_addresses_and_secrets_are_masked_wherever_they_stand(stream: io.StringIO) -> None:
    log.hide("canary-secret-1")
    log.get("daemon.x").warning("mail.refused", to="Anna <anna.k@mail.example>", why=["canary-secret-1", "x\r\ny"])
    assert "anna" not in stream.getvalue().replace("Anna", "")
    assert "canary" not in stream.getvalue()
    assert _lines(stream)[0]["why"] == ["<secret>", "x\\r\\ny"]


def test_the_text_of_a_foreign_exception_stays_out(stream: io.StringIO) -> None:
    try:
        raise ValueError("My vase arrived broken, says Anna")
    except ValueError:
        log.get("daemon.x").exception("case.broken")
    line = _lines(stream)[0]
    assert "vase" not in stream.getvalue()
    assert line["error"] == "ValueError"
    assert "test_log.py" in str(line["at"])


def test_the_text_of_our_own_error_is_kept(stream: io.StringIO) -> None:
    try:
        raise Transient("token server answers 503")
    except Transient:
        log.get("daemon.x").warning("sign_in.failed", exc_info=True)
    assert _lines(stream)[0]["problem"] == "token server answers 503"


def test_an_event_name_is_fixed_not_a_sentence(stream: io.StringIO) -> None:
    log.get("daemon.x").info("Mail of anna@mail.example arrived")
    assert _lines(stream)[0]["event"] == "log.unnamed"
    assert "anna" not in stream.getvalue()


def test_every_log_call_in_the_code_has_a_fixed_event_name() -> None:
    for path in Path(log.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_logger(node.func.value)):
                continue
            if node.func.attr in {"debug", "info", "warning", "error", "exception", "critical"}:
                name = node.args[0]
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}"
                assert log.EVENT_NAME.match(str(name.value)), f"{path}:{node.lineno} {name.value}"


def _is_logger(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in {"log", "_log", "logger"}


def test_libraries_are_heard_from_warning_upwards_and_masked(stream: io.StringIO) -> None:
    logging.getLogger("imapclient").debug("FETCH body")
    logging.getLogger("imapclient").warning("login of anna@mail.example failed")
    lines = _lines(stream)
    assert len(lines) == 1
    assert lines[0]["event"] == "library.message"
    assert "anna" not in stream.getvalue()


def test_logging_does_not_load_what_draws_on_terminals() -> None:
    program = "import sys, daemon.log; assert 'rich' not in sys.modules; import rich.console, structlog; assert structlog.dev.rich is None"
    subprocess.run([sys.executable, "-c", program], check=True)
