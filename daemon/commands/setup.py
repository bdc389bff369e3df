"""``postsale init``: a folder with everything that a first set-up needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from daemon import config_example, resources
from daemon.commands.shared import say, say_json
from daemon.errors import PostsaleError
from daemon.providers import PRESETS

#: Where a service keeps what it writes; systemd makes these folders (StateDirectory=).
SYSTEM_STATE = Path("/var/lib/postsale")


def init(
    folder: Path,
    *,
    address: str,
    approver: str,
    provider: str,
    imap: str,
    smtp: str,
    system: bool,
    as_json: bool,
    quiet: bool = False,
) -> None:
    """Write a configuration, a copy of playbook and templates, and the folders that they name.

    With ``system`` the configuration suits the systemd unit: state under
    /var/lib/postsale, the password as a systemd credential. Nothing that is
    there already is overwritten: an existing configuration is refused.
    """
    config = folder / "config.toml"
    if config.exists():
        raise PostsaleError(f"{config} exists already; nothing was changed")
    if provider not in PRESETS:
        raise PostsaleError(f"{provider} is no known provider; known are {', '.join(sorted(PRESETS))}")
    values = _values(address=address, approver=approver, provider=provider, imap=imap, smtp=smtp, system=system)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    if not system:
        for name, mode in (("models", 0o755), ("orders", 0o755), ("data", 0o700)):
            (folder / name).mkdir(mode=mode, exist_ok=True)
    if not (folder / "templates").exists():
        shutil.copytree(resources.templates(), folder / "templates")
    secret = folder / "secrets" / "shop.password"
    if not secret.exists():
        secret.touch(mode=0o600)
    config.write_text(config_example.text(values), encoding="utf-8")
    config.chmod(0o644 if system else 0o600)  # the unit's user is not root, and no secret stands in it
    if as_json:
        say_json({"folder": str(folder), "config": str(config)})
        return
    if quiet:
        return
    orders = SYSTEM_STATE / "orders" if system else folder / "orders"
    prefix = f"CREDENTIALS_DIRECTORY={folder / 'secrets'} " if system else ""
    say(f"{folder} is ready. Next:")
    say(f"  1. open {config}: your address, servers, approver")
    say(f"  2. put the mailbox's password into {secret}")
    say(f"  3. put order reports into {orders}")
    say(f"  4. {prefix}postsale check --config {config}")
    start = "systemctl enable --now postsale.service" if system else f"postsale run --config {config}"
    say(f"  5. {start}   (shadow mode: nothing goes to a buyer)")


def _values(*, address: str, approver: str, provider: str, imap: str, smtp: str, system: bool) -> dict[str, Any]:
    """What stands in the new configuration without a # before it."""
    values: dict[str, Any] = dict(config_example.SAMPLE)
    values["mailboxes.address"] = address or values["mailboxes.address"]
    values["approvers.address"] = approver or values["approvers.address"]
    values["mailboxes.provider"] = provider
    for key, host in (("imap", imap), ("smtp", smtp)):
        if host:
            values[f"mailboxes.{key}.host"] = host
        elif provider != "generic":
            del values[f"mailboxes.{key}.host"]
    if "approval" in PRESETS[provider]:
        del values["mailboxes.approval.authserv_id"]
    if system:
        del values["mailboxes.sign_in.password_file"]
        values["mailboxes.sign_in.password_credential"] = "shop.password"
        values["service.data_dir"] = SYSTEM_STATE
        values["classifier.model_dir"] = SYSTEM_STATE / "models"
        values["orders.sources.path"] = SYSTEM_STATE / "orders"
    return values
