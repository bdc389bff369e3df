"""Where the files are that ship with Postsale: in a wheel beside the code, in a checkout at its root."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def share() -> Path:
    """The folder that holds templates/, systemd/ and config.example.toml."""
    package = Path(str(files("daemon")))
    packed = package / "_share"
    return packed if packed.is_dir() else package.parent


def templates() -> Path:
    """The shipped reply templates, with playbook.toml among them."""
    return share() / "templates"


def playbook() -> Path:
    """The shipped playbook."""
    return templates() / "playbook.toml"


def unit_files() -> Path:
    """The shipped systemd units."""
    return share() / "systemd"


def starter_model() -> Path:
    """The model that ships with Postsale, trained from the starter corpus."""
    return Path(str(files("classifiers"))) / "starter" / "model"
