"""``postsale erase``, ``export``, ``backup`` and ``restore``."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from daemon import __version__
from daemon.clock import SystemClock
from daemon.commands.shared import actor, give_back, open_config, open_database, say, say_json
from daemon.config import Config
from daemon.errors import PostsaleError

_SQLITE = "postsale.db"
_DUMP = "postsale.dump"
_MANIFEST = "manifest.json"


def erase(given: Path | None, *, address: str, yes: bool, as_json: bool) -> None:
    """Remove what is stored about a person, and report what went."""
    from daemon.store import forgetting

    config = open_config(given)
    if not re.fullmatch(r"\s*[^\s@]+@[^\s@]+\s*", address):
        raise PostsaleError(f"{address} is no mail address; write it as in someone@postbox.example")
    if not yes and input(f"Remove everything stored about {address}? Type yes: ").strip().lower() != "yes":
        raise PostsaleError("nothing was removed")
    with open_database(config) as database:
        now = SystemClock().now()
        gone = database.write_now(lambda c: forgetting.erase(c, address, actor=actor(), now=now))
    if as_json:
        say_json(gone)
        return
    if any((gone["cases"], gone["not_yet"], *gone["gone"].values())):
        went = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in gone["gone"].items())
        say(f"{len(gone['cases'])} cases emptied: {went}")
    else:
        say(f"Nothing is stored about {address}; was it written with another address?")
    if gone["not_yet"]:
        say(f"Not yet, a reply is leaving or of unknown fate: cases {gone['not_yet']}. Run this again later.")
    if gone["models"]:
        say(f"Models that learned from these texts: {', '.join(gone['models'])}. Train anew, then remove them.")
    say("Not touched: the mailbox on its server, backups, and order reports in their folder.")


def export(given: Path | None, *, case: int, out: Path | None) -> None:
    """Write everything stored about a case as JSON."""
    from daemon.store import forgetting

    config = open_config(given)
    with open_database(config) as database:
        content = database.read_now(lambda c: forgetting.export(c, case))
    text = json.dumps(content, ensure_ascii=False, indent=2, default=str)
    if out is None:
        say(text)
        return
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    say(f"written to {out}")


def backup(given: Path | None, *, out: Path) -> None:
    """Copy database, models and tokens into one archive, also while the service runs."""
    from daemon.store.backup import copy_database

    config = open_config(given)
    if not out.absolute().parent.is_dir():
        raise PostsaleError(f"there is no folder {out.absolute().parent}")
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as work, open_database(config) as database:
        name = _SQLITE if database.is_sqlite else _DUMP
        copy_database(database, Path(work) / name)
        archive = Path(work) / "archive"
        handle = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            about = json.dumps({"postsale": __version__, "at": SystemClock().now().isoformat()}).encode()
            info = tarfile.TarInfo(_MANIFEST)
            info.size = len(about)
            tar.addfile(info, io.BytesIO(about))
            tar.add(Path(work) / name, arcname=name)
            for name, place in _places(config).items():
                if place.exists():
                    tar.add(place, arcname=name)
        shutil.move(archive, out)
    say(f"written to {out}; it holds buyers' mail and sign-in tokens, so keep it as you keep passwords")


def restore(given: Path | None, *, archive: Path, force: bool) -> None:
    """Put an archive's database, models and tokens back, and let nothing leave that may have left already."""
    from daemon.store.backup import distrust

    config = open_config(given)
    if not archive.is_file():
        raise PostsaleError(f"there is no file {archive}")
    folder = config.service.data_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _stopped(folder), tempfile.TemporaryDirectory(dir=folder) as work:
        _unpack(archive, Path(work))
        if config.service.database:
            _restore_postgres(config, Path(work), force=force)
        else:
            _restore_sqlite(folder / _SQLITE, Path(work), force=force)
        for name, place in _places(config).items():
            if (Path(work) / name).is_dir():
                shutil.copytree(Path(work) / name, place, dirs_exist_ok=True)
            elif (Path(work) / name).is_file():
                shutil.copy2(Path(work) / name, place)
        with open_database(config) as database:
            now = SystemClock().now()
            stopped = database.write_now(lambda c: distrust(c, actor=actor(), now=now))
    for place in (folder, config.classifier.model_dir):
        give_back(place, deep=True)
    say(f"restored into {config.service.data_dir}; {stopped} queued replies were given to a person")
    say("What left after the backup is not known here: sending is paused, approvers are asked anew, and mail of the time")
    say("before now is for a person. Look at `postsale queue list`, then: postsale resume")


def _restore_sqlite(target: Path, work: Path, *, force: bool) -> None:
    from daemon.store.backup import check_database

    copy = work / _SQLITE
    if not copy.is_file():
        raise PostsaleError("the archive is of a PostgreSQL database; set service.database to where it shall go")
    if target.exists() and not force:
        raise PostsaleError(f"{target} exists; --force replaces it")
    check_database(copy)
    for suffix in ("-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    copy.replace(target)


def _restore_postgres(config: Config, work: Path, *, force: bool) -> None:
    from daemon.edges.credentials import database_password
    from daemon.store.backup import is_empty, load_dump
    from daemon.store.db import Database

    if not (work / _DUMP).is_file():
        raise PostsaleError("the archive is of an SQLite database; leave service.database out to restore it")
    database = Database(config.database_url, password=database_password(config))
    try:
        if not force and not is_empty(database):
            raise PostsaleError("the database is not empty; --force replaces what it holds")
        load_dump(database, work / _DUMP)
    finally:
        database.close()


@contextmanager
def _stopped(folder: Path) -> Iterator[None]:
    """Keep the service from starting meanwhile; raises PostsaleError when it runs."""
    handle = os.open(folder / "postsale.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PostsaleError(f"{folder}: Postsale is running; stop it first (systemctl stop postsale)") from error
        yield
    finally:
        os.close(handle)


def _unpack(archive: Path, to: Path) -> None:
    """Unpack what ``backup`` wrote: files and folders beneath ``to``, readable by their owner only, and nothing else.

    Raises PostsaleError. The standard library's own filter came with Python 3.11.4; Debian 12 has 3.11.2.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if not parts or ".." in parts or parts[0] == "/" or not (member.isfile() or member.isdir()):
                    raise PostsaleError(f"{archive} was not written by postsale backup: it holds {member.name!r}")
                target = to.joinpath(*parts)
                if member.isdir():
                    target.mkdir(mode=0o700, parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                content = tar.extractfile(member)
                if content is None:
                    raise PostsaleError(f"{archive} was not written by postsale backup: it holds {member.name!r}")
                handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with content, os.fdopen(handle, "wb") as file:
                    shutil.copyfileobj(content, file)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise PostsaleError(f"{archive} is no whole archive of postsale backup: {error}") from error
    if not (to / _MANIFEST).is_file():
        raise PostsaleError(f"{archive} was not written by postsale backup")


def _places(config: Config) -> dict[str, Path]:
    """What belongs into a backup beside the database; without service.key open approval requests would be void."""
    data = config.service.data_dir
    return {"models": config.classifier.model_dir, "tokens": data / "tokens", "service.key": data / "service.key"}
