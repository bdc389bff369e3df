"""``postsale check``: configuration, playbook, model, database, order sources and every server, one line each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from classifiers.errors import ModelRefused
from daemon import mind
from daemon.commands.scratch import order_shelf
from daemon.commands.shared import config_path, open_database, say, say_json
from daemon.config import Config, MailboxConfig, load, missing_files
from daemon.edges.credentials import sign_in
from daemon.edges.imap import Imap
from daemon.edges.orders import Shelf
from daemon.edges.orders.opening import open_orders
from daemon.edges.smtp import Smtp
from daemon.errors import ConfigError, PostsaleError
from daemon.steps.approval import protection
from daemon.tasks import MindFiles

#: Longest a server may take to answer here.
PING_SECONDS = 45


@dataclass(frozen=True, slots=True)
class Looked:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str
    seconds: float


def check(given: Path | None, *, offline: bool, as_json: bool) -> int:
    """Print one line per thing; 1 when one of them is not as it must be, 78 when the configuration cannot be read."""
    path = config_path(given)
    config = load(path, require_files=False)
    fine = True
    for looked in _everything(path, config, offline=offline):
        fine = fine and looked.ok
        if as_json:
            say_json({"what": looked.what, "ok": looked.ok, "detail": looked.detail, "seconds": round(looked.seconds, 3)})
        else:
            say(f"{'ok  ' if looked.ok else 'FAIL'}  {looked.what:24} {looked.detail}")
    return 0 if fine else 1


def _everything(path: Path, config: Config, *, offline: bool) -> Iterator[Looked]:
    yield from _configuration(path, config)
    yield _look("playbook", lambda: _playbook(config))
    yield _look("model", lambda: _model(config))
    yield _look("database", lambda: _database(config))
    for number in range(len(config.orders.sources)):
        yield _look(f"orders {number + 1}", partial(_orders, config, number))
    for mailbox in config.mailboxes:
        yield _look(f"{mailbox.name} approval", partial(_approval, config, mailbox))
        if not offline:
            yield _look(f"{mailbox.name} imap", partial(_in_loop, _imap, config, mailbox))
            yield _look(f"{mailbox.name} smtp", partial(_in_loop, _smtp, config, mailbox))


def _in_loop(look: Callable[[Config, MailboxConfig], Coroutine[Any, Any, str]], config: Config, mailbox: MailboxConfig) -> str:
    return asyncio.run(look(config, mailbox))


def _look(what: str, work: Callable[[], str]) -> Looked:
    begun = time.monotonic()
    try:
        detail, ok = work(), True
    except (PostsaleError, ModelRefused) as error:
        detail, ok = str(error), False
    except OSError as error:
        detail, ok = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", False
    return Looked(what, ok, detail, time.monotonic() - begun)


def _configuration(path: Path, config: Config) -> Iterator[Looked]:
    """A whole configuration is one line; each thing that it lacks is one."""
    try:
        load(path)
    except ConfigError as error:
        for each in (error, *error.others):
            yield Looked("configuration", False, str(each), 0.0)
        return
    if not config.mailboxes:
        yield Looked("configuration", False, f"{path}: there is no [[mailboxes]] table (add one)", 0.0)
        return
    yield Looked("configuration", not missing_files(path, config), f"{path}, mode {config.service.mode.value}", 0.0)


def _playbook(config: Config) -> str:
    opened = mind.load_mind(_files(config), checked=True)
    return (
        f"{len(opened.playbook.policies)} policies, {len(opened.renderer.names)} templates, version {opened.playbook.version}"
    )


def _model(config: Config) -> str:
    files = _files(config)
    opened = mind.load_mind(files)
    origin = "trained here" if files.model.is_relative_to(config.classifier.model_dir) else "shipped"
    return f"{opened.model.version} ({origin}), knows {len(opened.model.labels)} labels"


def _files(config: Config) -> MindFiles:
    from daemon.judge import mind_files

    return mind_files(config)


def _database(config: Config) -> str:
    with open_database(config) as database:
        kind = "SQLite" if database.is_sqlite else "PostgreSQL"
    return f"{kind}, schema up to date"


def _orders(config: Config, number: int) -> str:
    one = config.orders.model_copy(update={"sources": (config.orders.sources[number],)})

    async def ask(shelf: Shelf) -> int:
        book = open_orders(one, shelf, settle_seconds=0)
        try:
            await asyncio.wait_for(book.ping(), PING_SECONDS)
            return await book.refresh()
        finally:
            await book.close()

    with order_shelf(one) as shelf:
        found = asyncio.run(ask(shelf))
        newest = max((as_of for _, _, as_of in shelf.editions()), default=None)
    if one.sources[0].kind != "folder":
        return "answers"
    return f"{found} reports" + (f", the newest of {newest:%Y-%m-%d %H:%M} UTC" if newest else "")


def _approval(config: Config, mailbox: MailboxConfig) -> str:
    if not mailbox.approval.approvers:
        raise ConfigError("config", f"mailboxes.{mailbox.name}.approval.approvers", "is empty", "nobody is asked; name one")
    approval = mailbox.approval
    asked = {*approval.approvers, *approval.next_approvers}
    said = protection(
        [way.value for way in approval.staff_auth],
        authserv_id=approval.authserv_id,
        plus_addressing=approval.plus_addressing,
        address=approval.address or mailbox.address,
        approver_addresses=[a.address for a in config.approvers if a.name in asked],
    )
    told = " ".join(f"{'WARNING: ' if each.warning else ''}{each.text}" for each in said)
    return f"{', '.join(approval.approvers)} for {mailbox.address}. {told}"


async def _imap(config: Config, mailbox: MailboxConfig) -> str:
    edge = Imap(mailbox.imap, sign_in(config, mailbox))
    return await _ping(edge.ping, edge.close, f"{mailbox.imap.host}: ")


async def _smtp(config: Config, mailbox: MailboxConfig) -> str:
    edge = Smtp(mailbox.smtp, sign_in(config, mailbox, smtp=True), final_reply_seconds=PING_SECONDS)
    return await _ping(edge.ping, edge.close, f"{mailbox.smtp.host}: ")


async def _ping(ping: Callable[[], Awaitable[str]], close: Callable[[], Awaitable[None]], prefix: str) -> str:
    try:
        return prefix + await asyncio.wait_for(ping(), PING_SECONDS)
    except TimeoutError as error:
        raise PostsaleError(f"{prefix}no answer within {PING_SECONDS} seconds") from error
    finally:
        await close()
