"""``postsale erase``, ``export``, ``backup`` and ``restore``."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from daemon import __version__
from daemon.clock import SystemClock
from daemon.commands.shared import actor, open_config, open_database, say, say_json
from daemon.config import Config
from daemon.errors import PostsaleError

_DATABASE = "postsale.db"
_MANIFEST = "manifest.json"


def erase(given: Path | None, *, address: str, yes: bool, as_json: bool) -> None:
    """Remove what is stored about a person, and report what went."""
    from daemon.store import forgetting

    config = open_config(given)
    if not yes and input(f"Remove everything stored about {address}? Type yes: ").strip().lower() != "yes":
        raise PostsaleError("nothing was removed")
    with open_database(config) as database:
        now = SystemClock().now()
        gone = database.write_now(lambda c: forgetting.erase(c, address, actor=actor(), now=now))
    if as_json:
        say_json(gone)
        return
    say(f"{len(gone['cases'])} cases emptied: " + ", ".join(f"{n} {what}" for what, n in gone["gone"].items()))
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
    with (
        tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as work,
        open_database(config) as database,
    ):
        copy = Path(work) / _DATABASE
        copy_database(database, copy)
        archive = Path(work) / "archive"
        handle = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            about = json.dumps({"postsale": __version__, "at": SystemClock().now().isoformat()}).encode()
            info = tarfile.TarInfo(_MANIFEST)
            info.size = len(about)
            tar.addfile(info, io.BytesIO(about))
            tar.add(copy, arcname=_DATABASE)
            for name, place in _places(config).items():
                if place.exists():
                    tar.add(place, arcname=name)
        shutil.move(archive, out)
    say(f"written to {out}; it holds buyers' mail and sign-in tokens, so keep it as you keep passwords")


def restore(given: Path | None, *, archive: Path, force: bool) -> None:
    """Put an archive's database, models and tokens back."""
    from daemon.store.backup import check_database

    config = open_config(given)
    if config.service.database:
        raise PostsaleError("the database is not in data_dir: restore it with its own tools (pg_restore)")
    target = config.service.data_dir / _DATABASE
    if target.exists() and not force:
        raise PostsaleError(f"{target} exists; --force replaces it")
    config.service.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.service.data_dir) as work:
        try:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(work, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise PostsaleError(f"{archive} is no whole archive of postsale backup: {error}") from error
        if not (Path(work) / _MANIFEST).is_file():
            raise PostsaleError(f"{archive} was not written by postsale backup")
        check_database(Path(work) / _DATABASE)
        for suffix in ("-wal", "-shm"):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        (Path(work) / _DATABASE).replace(target)
        for name, place in _places(config).items():
            if (Path(work) / name).is_dir():
                shutil.copytree(Path(work) / name, place, dirs_exist_ok=True)
            elif (Path(work) / name).is_file():
                shutil.copy2(Path(work) / name, place)
    say(f"restored into {config.service.data_dir}")


def _places(config: Config) -> dict[str, Path]:
    """What belongs into a backup beside the database; without service.key open approval requests would be void."""
    data = config.service.data_dir
    return {"models": config.classifier.model_dir, "tokens": data / "tokens", "service.key": data / "service.key"}
