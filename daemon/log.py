"""Logging: one line per event, a fixed event name, codes and ids; never what people wrote.

An event name is ``noun.verb`` in lower case (``case.ignored``, ``reply.sent``);
a test looks at every call.
Mail addresses are masked wherever they turn up, secrets that were read are
masked too, and of an exception only its type and the places in the code are
logged, because its message may quote a buyer; the text of our own errors is
kept, since we write it. ``case_id`` and ``mailbox`` are bound once with
:func:`bound` and stand on every line beneath.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from daemon.errors import PostsaleError


@contextmanager
def _without_rich() -> Iterator[None]:
    """Let structlog believe that rich is not installed: it would load it, 6 MB, to draw tracebacks that are never drawn here."""
    modules = cast(dict[str, Any], sys.modules)
    modules.setdefault("rich", None)
    try:
        yield
    finally:
        if modules["rich"] is None:
            del modules["rich"]


if TYPE_CHECKING:
    import structlog
else:
    with _without_rich():
        import structlog

EVENT_NAME = re.compile(r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$")
_ADDRESS = re.compile(r"[^\s<>\"'(),;:\[\]{}=]{1,128}@[\w.-]{1,253}")
_LONGEST_VALUE = 300
#: How the journal is told of a line's weight (sd-daemon(3)).
_JOURNAL_PRIORITY = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
_secrets: set[str] = set()

Logger = structlog.stdlib.BoundLogger


def get(name: str) -> Logger:
    """The logger of a module."""
    return cast(Logger, structlog.get_logger(name))


def bound(**values: str | int | None) -> AbstractContextManager[object]:
    """Stand these values on every line logged inside the ``with`` block, also by tasks begun in it."""
    return structlog.contextvars.bound_contextvars(**values)


def hide(secret: str) -> None:
    """Mask this value in every later line, should it ever get into one."""
    if len(secret) >= 6:
        _secrets.add(secret)


def mask(text: str) -> str:
    """The text without mail addresses, known secrets and line breaks, cut to a line's length."""
    for secret in _secrets:
        text = text.replace(secret, "<secret>")
    text = _ADDRESS.sub("<address>", text)
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def configure(level: str = "info", style: str = "json", *, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging behind it.

    ``style`` is json or console. Libraries are heard from warning upwards
    only: at debug level they log message text.
    """
    stream = stream or sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _failure,
        _only_masked,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    if "JOURNAL_STREAM" in os.environ and stream is sys.stderr:
        final = [_JournalPriority(renderer)]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[_foreign, *shared], processors=final))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("daemon").setLevel(level.upper())


class _JournalPriority:
    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        prefix = _JOURNAL_PRIORITY.get(str(event.get("level")), "<6>")
        event = structlog.stdlib.ProcessorFormatter.remove_processors_meta(logger, name, cast(Any, event))
        return prefix + str(self._renderer(logger, name, event))


def _foreign(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A library's own line: its sentence becomes a value beneath our fixed name."""
    event["message"] = event.pop("event", "")
    event["event"] = "library.message"
    return event


def _failure(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Turn exc_info into the type and the places in the code; messages only of our own errors."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        if isinstance(error, PostsaleError):
            event["problem"] = str(error)
        event["at"] = [
            f"{frame.filename.rpartition('/site-packages/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-8:]
        ]
    return event


def _only_masked(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if not EVENT_NAME.match(str(event.get("event", ""))):
        event["message"], event["event"] = event.get("event"), "log.unnamed"  # a log line never stops a loop
    for key, value in event.items():
        if key.startswith("_"):
            continue
        event[key] = _masked(value)
    return event


def _masked(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(v) for v in value]
    return mask(str(value))
