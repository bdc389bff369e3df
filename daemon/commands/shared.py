"""What several commands need: the configuration, the database, who asks, and how results are printed."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.config import Config, load
from daemon.errors import ConfigError

#: Where a configuration is looked for when none is named.
PLACES = (Path("config.toml"), Path("/etc/postsale/config.toml"))


def config_path(given: Path | None) -> Path:
    """The configuration file: the one named, or the first of the usual places."""
    if given is not None:
        return given
    for place in PLACES:
        if place.is_file():
            return place
    raise ConfigError(
        "config.toml",
        "",
        "there is none here nor in /etc/postsale",
        "name one with --config, or create one with `postsale init DIR`",
    )


def open_config(given: Path | None, *, require_files: bool = False) -> Config:
    """Load the configuration of a command."""
    return load(config_path(given), require_files=require_files)


@contextmanager
def open_database(config: Config) -> Iterator[Any]:
    """The store, its schema brought up to this program's; closed at the end."""
    from daemon.edges.credentials import database_password
    from daemon.store.db import Database
    from daemon.store.migrate import HEAD, current, upgrade

    config.service.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(config.database_url, password=database_password(config))
    try:
        if database.read_now(current) != HEAD:  # looked at first: an upgrade waits for whoever writes
            upgrade(database)
        yield database
    finally:
        database.close()
        give_back(config.service.data_dir)


def give_back(folder: Path, *, deep: bool = False) -> None:
    """What root wrote into a service's folder belongs to the folder's owner, or the service could not open it."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for path in folder.rglob("*") if deep else folder.iterdir():
        if path.lstat().st_uid == 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def actor() -> str:
    """Who runs this command, as events record it."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a system user without a name
        return f"cli:{os.getuid()}"


def say(text: str = "") -> None:
    """One line for a person."""
    sys.stdout.write(f"{text}\n")


def say_json(value: Any) -> None:
    """One JSON value for a program, on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()
