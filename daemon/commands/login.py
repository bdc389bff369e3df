"""``postsale login``: sign a mailbox in with OAuth2, once."""

from __future__ import annotations

from pathlib import Path

from daemon.commands.shared import open_config, say
from daemon.edges.credentials import OAuthSignIn, sign_in
from daemon.errors import PostsaleError


def login(given: Path | None, *, mailbox: str, smtp: bool) -> None:
    """Lead the operator through the provider's sign-in and store the tokens."""
    config = open_config(given)
    names = [m.name for m in config.mailboxes]
    if mailbox not in names:
        raise PostsaleError(f"there is no mailbox {mailbox}; there are {', '.join(names)}")
    wanted = config.mailbox(mailbox)
    way = sign_in(config, wanted, smtp=smtp)
    credential = wanted.smtp_sign_in if smtp and wanted.smtp_sign_in else wanted.sign_in
    if not isinstance(way, OAuthSignIn):
        raise PostsaleError(f"{mailbox} signs in with a password; set sign_in.oauth to google or microsoft")
    if credential.oauth == "google" and credential.oauth_device_url is None:
        way.sign_in_by_pasted_address(_ask)
    else:
        way.sign_in_by_device(lambda address, code: say(f"Open {address} in any browser and type {code}. Waiting ..."))
    say(f"{mailbox} is signed in as {way.username}; tokens are renewed from now on.")


def _ask(address: str) -> str:
    say("Open this address in a browser on any machine and allow access:")
    say()
    say(address)
    say()
    say("The browser ends on a page that cannot be shown, at http://127.0.0.1:1/. Paste that page's whole address here:")
    return input("> ")
