"""Secrets and sign-in: passwords from files or systemd credentials, OAuth2 tokens that renew themselves.

A secret is read when it is needed, never kept in the configuration object,
and told to :mod:`daemon.log` so that it is masked should it ever reach a line.

OAuth2: Microsoft signs in by device code (RFC 8628). Google does not allow
the mail scope there, so its sign-in is the authorization code with PKCE (RFC
7636): the operator opens an address in any browser and pastes the address
that the browser ends on. Tokens lie in ``data_dir/tokens/``, mode 0600, and
are replaced on each refresh, because both providers may rotate them. A renewal
that fails is noted beside them, for the alarm and for ``postsale status``; the
present token serves until its end.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

from daemon import log
from daemon.config import Config, Credential, MailboxConfig, credentials_directory
from daemon.errors import ConfigError, NeedsHuman, PostsaleError, Transient

#: A token is renewed when this share of its life has passed, before a server ends the session on it.
RENEW_AT_SHARE = 0.8
TOKEN_REQUEST_SECONDS = 20.0
#: After the token server failed: seconds until it should be asked again.
ASK_AGAIN_SECONDS = 60.0
#: Seconds of its life in which a token is no longer used.
TOO_OLD_SECONDS = 30.0
#: Days without a renewal after which a provider ends a sign-in ("Refresh tokens in the Microsoft identity platform",
#: "Using OAuth 2.0 to Access Google APIs": six months).
IDLE_DAYS = {"microsoft": 90.0, "google": 180.0}
_GOOGLE_AUTHORIZE = "https://accounts.google.com/o/oauth2/v2/auth"
_GOOGLE_TOKEN = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address, not a secret
_MICROSOFT = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/{what}"
_SCOPES = {
    "google": "https://mail.google.com/",
    "microsoft": "https://outlook.office.com/IMAP.AccessAsUser.All https://outlook.office.com/SMTP.Send offline_access",
}
#: Where Google sends the browser; nothing listens there, the operator copies the address.
_REDIRECT = "http://127.0.0.1:1/"


_logger = log.get(__name__)


class SignIn(Protocol):
    """How one account proves itself to its mail servers."""

    @property
    def username(self) -> str:
        """The login name."""
        ...

    @property
    def oauth(self) -> bool:
        """Whether ``secret`` is an OAuth2 access token (XOAUTH2) instead of a password."""
        ...

    def secret(self) -> str:
        """The password or a fresh access token; may block, may be called from any thread.

        Raises Transient when the token server cannot be reached and NeedsHuman
        when somebody has to sign in again.
        """
        ...

    def refused(self) -> None:
        """A server did not accept the secret: the next one should be another, where another can be had."""
        ...

    def session_seconds(self) -> float | None:
        """Seconds until a connection made now should be renewed; None: never."""
        ...


@dataclass(frozen=True, slots=True)
class TokenState:
    """What is known of one OAuth2 sign-in. Everything is None before the first one."""

    signed_in_at: datetime | None = None  # when a person last did; unknown for tokens of earlier versions
    renewed_at: datetime | None = None
    access_ends: datetime | None = None  # of the access token in force
    sign_in_ends: datetime | None = None  # when a person has to sign in again at the latest, as far as that is known
    failing_since: datetime | None = None  # since when no renewal has come off
    withdrawn: bool = False  # the provider said no for good
    problem: str | None = None  # what the last renewal failed of


class PasswordSignIn:
    """A login name and a password that is read anew for each connection."""

    oauth = False

    def __init__(self, username: str, read: Callable[[], str]) -> None:
        self.username = username
        self._read = read

    def secret(self) -> str:
        return self._read()

    def refused(self) -> None:
        """The file is read anew each time anyway."""

    def session_seconds(self) -> float | None:
        return None


class OAuthSignIn:
    """An account whose access token comes from a stored refresh token."""

    oauth = True

    def __init__(
        self, username: str, mailbox: str, credential: Credential, token_file: Path, client_secret: Callable[[], str | None]
    ) -> None:
        self.username = username
        self._mailbox = mailbox
        self._credential = credential
        self._file = token_file
        self._client_secret = client_secret
        self._lock = threading.Lock()
        self._last = ""  # the token given out last
        self._stale = ""  # a token that a server refused

    def secret(self) -> str:
        with self._lock:
            tokens: Mapping[str, Any] = self._load()
            if self._due(tokens):
                with self._alone():  # another connection or command may have renewed them meanwhile
                    tokens = self._load()
                    if self._due(tokens):
                        tokens = self._renew(tokens)
            self._last = token = str(tokens["access_token"])
            log.hide(token)
            return token

    def refused(self) -> None:
        """Ask for a new token before the next try: providers end tokens before their time."""
        with self._lock:
            self._stale = self._last

    def _due(self, tokens: Mapping[str, Any]) -> bool:
        return bool(tokens["access_token"] == self._stale or time.time() >= tokens["renew_at"])

    def session_seconds(self) -> float | None:
        with self._lock:
            return max(float(self._load()["renew_at"] - time.time()), 1.0)

    def state(self) -> TokenState:
        """What is known of the sign-in, from its file alone."""
        if not self._file.is_file():
            return TokenState()
        tokens: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        idle = self._credential.oauth_idle_days or IDLE_DAYS[self._credential.oauth or "microsoft"]
        ends = [tokens.get("refresh_ends_at"), _days_after(tokens.get("renewed_at"), idle)]
        ends.append(_days_after(tokens.get("signed_in_at"), self._credential.oauth_sign_in_days))
        return TokenState(
            signed_in_at=_moment(tokens.get("signed_in_at")),
            renewed_at=_moment(tokens.get("renewed_at")),
            access_ends=_moment(tokens["expires_at"]),
            sign_in_ends=_moment(min((end for end in ends if end is not None), default=None)),
            failing_since=_moment(tokens.get("failing_since")),
            withdrawn="withdrawn" in tokens,
            problem=tokens.get("problem"),
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold every other process and connection off the token file: a refresh token may be good for one use."""
        handle = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _load(self) -> dict[str, Any]:
        try:
            tokens: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise NeedsHuman("sign_in_needed", f"run `postsale login {self._mailbox}` once") from error
        if "withdrawn" in tokens:
            raise self._withdrawn(tokens["withdrawn"])
        return tokens

    def _withdrawn(self, error: object) -> NeedsHuman:
        return NeedsHuman("sign_in_needed", f"the sign-in was withdrawn ({error}); run `postsale login {self._mailbox}`")

    def _renew(self, tokens: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fresh tokens; the present ones while they are good and the token server is not."""
        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        try:
            answer = self._ask(token_url(self._credential), form)
        except Transient as error:
            return self._put_off(tokens, error)
        if "access_token" in answer:
            return self._store(answer, tokens)
        if answer.get("error") == "invalid_grant":  # for good (RFC 6749 section 5.2): nobody need ask again
            write_private(self._file, json.dumps({**tokens, "withdrawn": "invalid_grant"}))
        raise self._withdrawn(answer.get("error"))

    def _put_off(self, tokens: Mapping[str, Any], trouble: Transient) -> Mapping[str, Any]:
        """Note that a renewal failed, and when the next one is due for everybody; raises Transient when the token is too old."""
        now = time.time()
        noted = {**tokens, "failing_since": tokens.get("failing_since", now), "problem": str(trouble)}
        good = now < tokens["expires_at"] - TOO_OLD_SECONDS and tokens["access_token"] != self._stale
        if good:
            noted["renew_at"] = min(now + ASK_AGAIN_SECONDS, tokens["expires_at"] - TOO_OLD_SECONDS)
        write_private(self._file, json.dumps(noted))
        if not good:
            raise Transient(str(trouble), retry_after=ASK_AGAIN_SECONDS) from trouble
        _logger.warning("token.not_renewed", mailbox=self._mailbox, problem=str(trouble))
        return noted

    def _store(self, answer: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keep what the provider gave; ``before`` are the tokens that it renews, None when a person signed in."""
        before = before or {}
        lifetime = float(answer.get("expires_in", 3600))
        now = time.time()
        told = float(answer.get("refresh_token_expires_in") or 0)
        tokens = {
            "access_token": answer["access_token"],
            "refresh_token": answer.get("refresh_token", before.get("refresh_token")),
            "expires_at": now + lifetime,
            "renew_at": now + lifetime * RENEW_AT_SHARE,
            "signed_in_at": before.get("signed_in_at") if before else now,
            "renewed_at": now,
            "refresh_ends_at": now + told if told > 0 else before.get("refresh_ends_at"),
        }
        if not tokens["refresh_token"]:
            raise NeedsHuman("sign_in_needed", "the provider gave no refresh token; allow offline access and sign in again")
        write_private(self._file, json.dumps(tokens))
        return tokens

    def _ask(self, url: str, form: Mapping[str, str]) -> dict[str, Any]:
        fields = {"client_id": self._credential.oauth_client_id or "", **form}
        client_secret = self._client_secret()
        if client_secret:
            fields["client_secret"] = client_secret
        return post_form(url, fields)

    # ------------------------------------------------------------------ signing in for the first time

    def sign_in_by_device(self, show: Callable[[str, str], None], *, wait: Callable[[float], None] = time.sleep) -> None:
        """Device-code sign-in; ``show`` gets the address to open and the code to type there.

        Returns once tokens are stored. Raises NeedsHuman when the person
        refuses or is too slow.
        """
        scope = _SCOPES[self._credential.oauth or "microsoft"]
        asked = self._ask(device_url(self._credential), {"scope": scope})
        if "device_code" not in asked:
            raise NeedsHuman("sign_in_refused", f"the provider refused: {asked.get('error_description', asked.get('error'))}")
        show(str(asked.get("verification_uri") or asked.get("verification_url")), str(asked["user_code"]))
        interval = float(asked.get("interval", 5))
        ends = time.monotonic() + float(asked.get("expires_in", 900))
        while time.monotonic() < ends:
            wait(interval)
            answer = self._ask(
                token_url(self._credential),
                {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": str(asked["device_code"])},
            )
            if "access_token" in answer:
                self._store(answer)
                return
            if answer.get("error") == "slow_down":
                interval += 5
            elif answer.get("error") != "authorization_pending":
                raise NeedsHuman("sign_in_refused", f"the provider refused: {answer.get('error')}")
        raise NeedsHuman("sign_in_refused", "the code ran out before anyone typed it")

    def sign_in_by_pasted_address(self, ask: Callable[[str], str]) -> None:
        """Authorization code with PKCE; ``ask`` shows an address and returns the one the browser ended on."""
        verifier = secrets.token_urlsafe(64)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        state = secrets.token_urlsafe(16)
        query = {
            "client_id": self._credential.oauth_client_id or "",
            "redirect_uri": _REDIRECT,
            "response_type": "code",
            "scope": _SCOPES["google"],
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "state": state,
            "access_type": "offline",
            "prompt": "consent",
            "login_hint": self.username,
        }
        ended_on = parse_qs(urlsplit(ask(f"{_GOOGLE_AUTHORIZE}?{urlencode(query)}").strip()).query)
        if ended_on.get("state") != [state] or "code" not in ended_on:
            raise NeedsHuman("sign_in_refused", "that address carries no answer to this sign-in; start again")
        answer = self._ask(
            token_url(self._credential),
            {
                "grant_type": "authorization_code",
                "code": ended_on["code"][0],
                "code_verifier": verifier,
                "redirect_uri": _REDIRECT,
            },
        )
        if "access_token" not in answer:
            raise NeedsHuman("sign_in_refused", f"the provider refused: {answer.get('error')}")
        self._store(answer)


def token_states(config: Config) -> dict[str, TokenState]:
    """The state of every OAuth2 sign-in, by what follows ``postsale login`` to renew it."""
    found: dict[str, TokenState] = {}
    for mailbox in config.mailboxes:
        ways = {mailbox.name: sign_in(config, mailbox)}
        if mailbox.smtp_sign_in is not None:
            ways[f"{mailbox.name} --smtp"] = sign_in(config, mailbox, smtp=True)
        found |= {name: way.state() for name, way in ways.items() if isinstance(way, OAuthSignIn)}
    return found


def sign_in(config: Config, mailbox: MailboxConfig, *, smtp: bool = False) -> PasswordSignIn | OAuthSignIn:
    """How a mailbox signs in to its IMAP server, or its SMTP server with ``smtp``."""
    credential, name = mailbox.sign_in, "sign_in"
    if smtp and mailbox.smtp_sign_in is not None:
        credential, name = mailbox.smtp_sign_in, "smtp_sign_in"
    username = credential.username or mailbox.address
    key = f"mailboxes.{mailbox.name}.{name}"
    if credential.oauth:
        file = config.service.data_dir / "tokens" / f"{mailbox.name}{'.smtp' if name == 'smtp_sign_in' else ''}.json"
        secret_file = credential.oauth_client_secret_file
        return OAuthSignIn(
            username,
            mailbox.name,
            credential,
            file,
            lambda: read_secret_file(secret_file, f"{key}.oauth_client_secret_file") if secret_file else None,
        )
    return PasswordSignIn(username, lambda: password(credential, key))


def password(credential: Credential, key: str) -> str:
    """The password that a credential names; raises ConfigError when its place holds none."""
    if credential.password is not None:
        log.hide(credential.password)
        return credential.password
    if credential.password_file is not None:
        return read_secret_file(credential.password_file, f"{key}.password_file")
    if credential.password_credential is not None:
        return systemd_credential(credential.password_credential, f"{key}.password_credential")
    raise ConfigError("config", key, "says nowhere where the password is", "set password_file or password_credential, or oauth")


def systemd_credential(name: str, key: str) -> str:
    """A credential that systemd handed to this service (systemd.exec(5), LoadCredential=)."""
    folder = credentials_directory()
    if folder is None:
        raise ConfigError(
            "config", key, f"systemd gave no credential {name} to this process", f"add LoadCredential={name}:FILE to the unit"
        )
    return read_secret_file(folder / name, key)


def read_secret_file(path: Path, key: str) -> str:
    """The first line of a file; raises ConfigError when there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(
            str(path), key, "there is no such file", "create it, mode 0600, with the secret as first line"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), key, f"cannot be read: {error}", "check its owner, mode and encoding") from error
    secret = lines[0].strip() if lines else ""
    if not secret:
        raise ConfigError(str(path), key, "is empty", "put the secret into its first line")
    log.hide(secret)
    return secret


def database_password(config: Config) -> str | None:
    """The database's password, when its URL needs one from a file."""
    file = config.service.database_password_file
    return read_secret_file(file, "service.database_password_file") if file else None


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _days_after(seconds: float | None, days: float | None) -> float | None:
    return None if seconds is None or days is None else seconds + days * 86400


def token_url(credential: Credential) -> str:
    """Where access tokens come from."""
    if credential.oauth_token_url:
        return credential.oauth_token_url
    if credential.oauth == "google":
        return _GOOGLE_TOKEN
    return _MICROSOFT.format(tenant=credential.oauth_tenant, what="token")


def device_url(credential: Credential) -> str:
    """Where a device-code sign-in starts."""
    return credential.oauth_device_url or _MICROSOFT.format(tenant=credential.oauth_tenant, what="devicecode")


def post_form(url: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """POST a form, get JSON; an OAuth2 error answer (RFC 6749 section 5.2) is an answer too.

    Raises Transient when the server is down or talks no JSON.
    """
    import httpx  # here, since few set-ups sign in with tokens

    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        raise PostsaleError("a token address must be https")
    try:
        answer = httpx.post(url, data=dict(fields), timeout=TOKEN_REQUEST_SECONDS, follow_redirects=False)
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Transient(f"token server answers {answer.status_code}")
        content = answer.json()
    except httpx.HTTPError as error:
        raise Transient(f"token server cannot be reached: {type(error).__name__}") from error
    except ValueError as error:
        raise Transient("token server did not answer JSON") from error
    if not isinstance(content, dict):
        raise Transient("token server did not answer a JSON object")
    return content


def write_private(path: Path, content: str) -> None:
    """Replace a file durably and atomically, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
