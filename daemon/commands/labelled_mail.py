"""Labelled mail from wherever it lies, read as the daemon reads mail.

A source is one of

- ``FILE.jsonl``: ``{"text", "subject"?, "label", "lang"?, "thread"?}`` a line
- ``FOLDER`` with one folder per label (``return_request/damaged/`` for a sublabel),
  each holding ``.eml`` files or being a Maildir; or with one ``LABEL.mbox`` per label
- ``LABEL=PATH``: a Maildir, mbox file or folder of ``.eml`` files that all bear one label
- ``imap:MAILBOX:LABEL=FOLDER[,LABEL=FOLDER…]``: folders of a configured mailbox, opened read-only;
  ``FOLDER#KEYWORD`` takes only messages with that IMAP keyword
- ``feedback``: what staff confirmed or corrected, from the daemon's own database

Raw mail goes through the daemon's reading steps, so quotes, signatures and
marketplace wrappers never reach a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import mailbox
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import select

from classifiers.dataset import Example, read_jsonl
from classifiers.document import Document
from classifiers.errors import DataRefused
from daemon.commands.shared import open_database
from daemon.config import Config, ImapConfig
from daemon.edges.credentials import SignIn, sign_in
from daemon.edges.imap import Imap
from daemon.steps import language, marketplace, parse, writing
from daemon.store.tables import feedback
from daemon.vocab import Identity

FEEDBACK = "feedback"
IMAP_PREFIX = "imap:"
#: Raw messages that one IMAP command fetches, and the largest that is fetched whole, in bytes.
FETCHED_AT_ONCE = 50
LARGEST = 5_000_000
_MAIL_FILES = (".eml", ".msg", ".txt")


def read_sources(sources: Sequence[str], config: Callable[[], Config]) -> list[Example]:
    """All messages of all sources. ``config`` is called only where a source needs it. Raises DataRefused."""
    return [example for source in sources for example in _read(source, config)]


def example_of(raw: bytes, label: str, ident: str) -> Example:
    """One raw mail as the model will see such mail in the daemon."""
    mail = parse.parse(raw)
    envelope = marketplace.unwrap(mail, Identity())
    text = writing.own_words(envelope.inner, html=mail.text_is_html).text
    writer = mail.from_addr.addr if mail.from_addr else ""
    thread = mail.references[0] if mail.references else mail.in_reply_to[0] if mail.in_reply_to else ""
    return Example(
        document=Document(text, mail.subject, language.detect(text)),
        label=label,
        group=hashlib.sha256((writer or thread or ident).encode()).hexdigest()[:16],
        when=mail.date,
        ident=ident,
    )


def _read(source: str, config: Callable[[], Config]) -> Iterator[Example]:
    if source == FEEDBACK:
        yield from _feedback(config())
        return
    if source.startswith(IMAP_PREFIX):
        yield from _imap(source, config())
        return
    path = Path(source)
    label = ""
    if not path.exists() and "=" in source:
        label, _, rest = source.partition("=")
        path = Path(rest)
    if not path.exists():
        raise DataRefused(f"{path}: there is no such file or folder")
    if path.is_file() and path.suffix in {".jsonl", ".json", ".ndjson"}:
        yield from read_jsonl(path)
    elif path.is_file():
        yield from _mbox(path, label or path.stem)
    elif label:
        yield from _labelled(path, label)
    else:
        yield from _folder_per_label(path)


def _folder_per_label(root: Path) -> Iterator[Example]:
    found = False
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_dir() and path.name not in {"cur", "new", "tmp"} and _holds_mail(path):
            found = True
            yield from _labelled(path, _label_of(name))
        elif path.is_file() and path.suffix == ".mbox":
            found = True
            yield from _mbox(path, _label_of(name.with_suffix("")))
        elif path.is_file() and path.suffix in {".jsonl", ".ndjson"}:
            found = True
            yield from read_jsonl(path)
    if not found:
        raise DataRefused(f"{root}: holds no folder per label with mail in it, no .mbox and no .jsonl file")


def _label_of(name: Path) -> str:
    """A folder's place as a label; Maildir++ writes folders as ``.label.sublabel``."""
    return "/".join(part for piece in name.parts for part in piece.strip(".").split(".") if part)


def _holds_mail(folder: Path) -> bool:
    return (folder / "cur").is_dir() or any(p.suffix in _MAIL_FILES for p in folder.iterdir() if p.is_file())


def _labelled(folder: Path, label: str) -> Iterator[Example]:
    if (folder / "cur").is_dir():
        files = [p for part in ("cur", "new") for p in sorted((folder / part).glob("*")) if p.is_file()]
    else:
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _MAIL_FILES)
    for file in files:
        yield example_of(file.read_bytes(), label, f"{label}/{file.name}")


def _mbox(file: Path, label: str) -> Iterator[Example]:
    box = mailbox.mbox(file, create=False)
    try:
        for number, key in enumerate(box.keys(), 1):
            yield example_of(box.get_bytes(key), label, f"{file.name}:{number}")
    except (OSError, mailbox.Error) as error:
        raise DataRefused(f"{file}: cannot be read as mbox: {error}") from error
    finally:
        box.close()


def _feedback(config: Config) -> Iterator[Example]:
    with open_database(config) as database:
        rows = database.read_now(lambda connection: connection.execute(select(feedback).order_by(feedback.c.id)).all())
    for row in rows:
        if row.text or row.subject:
            yield Example(
                document=Document(row.text or "", row.subject or "", row.language),
                label=row.final,
                group=f"thread {row.thread_id}" if row.thread_id is not None else None,
                when=row.at,
                ident=f"feedback {row.id}",
            )


def _imap(source: str, config: Config) -> Iterator[Example]:
    name, _, wanted = source.removeprefix(IMAP_PREFIX).partition(":")
    try:
        account = config.mailbox(name)
    except KeyError as error:
        raise DataRefused(f"{source}: there is no mailbox {name} in the configuration") from error
    for item in wanted.split(","):
        label, _, place = item.partition("=")
        folder, _, keyword = place.partition("#")
        if not label or not folder:
            raise DataRefused(f"{source}: write imap:MAILBOX:LABEL=FOLDER, several between commas")
        server = account.imap.model_copy(update={"folder": folder})
        for uid, raw in asyncio.run(_fetch(server, sign_in(config, account), keyword)):
            yield example_of(raw, label, f"{name}/{folder}/{uid}")


async def _fetch(server: ImapConfig, credential: SignIn, keyword: str) -> list[tuple[int, bytes]]:
    """The messages of one folder; nothing on the server changes."""
    imap = Imap(server, credential, writable=False)
    found: list[tuple[int, bytes]] = []
    try:
        await imap.open()
        uids = await imap.uids_with(keyword)
        for start in range(0, len(uids), FETCHED_AT_ONCE):
            listed = await imap.sizes(uids[start : start + FETCHED_AT_ONCE])
            small = [item.uid for item in listed if item.size <= LARGEST]
            large = [item.uid for item in listed if item.size > LARGEST]
            bodies = await imap.fetch(small, size=sum(i.size for i in listed if i.size <= LARGEST)) if small else {}
            bodies |= await imap.fetch_head(large) if large else {}
            found += sorted(bodies.items())
    finally:
        await imap.close()
    return found
