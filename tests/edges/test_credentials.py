"""Passwords from their places, and OAuth2 against a token server on loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from daemon.config import Config, ImapConfig, SmtpConfig, TlsMode
from daemon.edges import credentials
from daemon.edges.credentials import OAuthSignIn, PasswordSignIn, sign_in
from daemon.edges.imap import Imap
from daemon.edges.smtp import Smtp
from daemon.errors import ConfigError, NeedsHuman, PostsaleError, Transient
from tests.fakes.imap import FakeImap
from tests.fakes.smtp import FakeSmtp
from tests.fakes.web import TokenServer


@pytest.fixture
def server() -> Iterator[TokenServer]:
    running = TokenServer()
    yield running
    running.close()


def _config(tmp_path: Path, **sign_in_values: Any) -> Config:
    mailbox = {"name": "shop", "address": "service@shop.example", "sign_in": sign_in_values}
    return Config.model_validate({"service": {"data_dir": tmp_path / "data"}, "mailboxes": [mailbox]})


def _oauth(tmp_path: Path, server: TokenServer, provider: str = "microsoft", **values: Any) -> OAuthSignIn:
    config = _config(
        tmp_path,
        oauth=provider,
        oauth_client_id="client-1",
        oauth_token_url=f"{server.url}/token",
        oauth_device_url=f"{server.url}/device",
        **values,
    )
    way = sign_in(config, config.mailboxes[0])
    assert isinstance(way, OAuthSignIn)
    return way


def _stored(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tokens" / "shop.json"


def test_a_password_comes_from_the_first_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("hunter2 ö\nsecond line\n", encoding="utf-8")
    config = _config(tmp_path, password_file=tmp_path / "p")
    way = sign_in(config, config.mailboxes[0])
    assert isinstance(way, PasswordSignIn)
    assert (way.username, way.secret(), way.oauth) == ("service@shop.example", "hunter2 ö", False)


def test_a_password_comes_from_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path, password_credential="shop.password")
    way = sign_in(config, config.mailboxes[0])
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="add LoadCredential"):
        way.secret()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "shop.password").write_text("from systemd\n")
    assert way.secret() == "from systemd"


def test_an_empty_or_missing_secret_is_told_with_its_mend(tmp_path: Path) -> None:
    config = _config(tmp_path, password_file=tmp_path / "p")
    way = sign_in(config, config.mailboxes[0])
    with pytest.raises(ConfigError, match="there is no such file"):
        way.secret()
    (tmp_path / "p").touch()
    with pytest.raises(ConfigError, match="is empty"):
        way.secret()


def test_no_place_for_a_password_is_told(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(ConfigError, match="says nowhere where the password is"):
        sign_in(config, config.mailboxes[0]).secret()


def test_device_sign_in_waits_for_the_person_and_stores_tokens_privately(tmp_path: Path, server: TokenServer) -> None:
    server.answers = [
        (200, {"device_code": "d", "user_code": "ABCD", "verification_uri": "https://v.example", "interval": 3}),
        (400, {"error": "authorization_pending"}),
        (400, {"error": "slow_down"}),
        (200, {"access_token": "access-1", "refresh_token": "refresh-1", "expires_in": 3600}),
    ]
    shown: list[tuple[str, str]] = []
    waited: list[float] = []
    way = _oauth(tmp_path, server)
    way.sign_in_by_device(lambda url, code: shown.append((url, code)), wait=waited.append)
    assert shown == [("https://v.example", "ABCD")]
    assert waited == [3, 3, 8]
    assert server.asked[0][1]["client_id"] == "client-1"
    assert "IMAP.AccessAsUser.All" in server.asked[0][1]["scope"]
    assert way.secret() == "access-1"
    assert _stored(tmp_path).stat().st_mode & 0o777 == 0o600


def test_a_refused_device_sign_in_is_told(tmp_path: Path, server: TokenServer) -> None:
    server.answers = [
        (200, {"device_code": "d", "user_code": "A", "verification_uri": "https://v.example", "interval": 1}),
        (400, {"error": "access_denied"}),
    ]
    with pytest.raises(NeedsHuman, match="access_denied"):
        _oauth(tmp_path, server).sign_in_by_device(lambda _url, _code: None, wait=lambda _s: None)


def test_google_signs_in_by_a_pasted_address_with_pkce(tmp_path: Path, server: TokenServer) -> None:
    server.answers = [(200, {"access_token": "access-1", "refresh_token": "refresh-1", "expires_in": 3600})]
    way = _oauth(tmp_path, server, "google")
    asked: dict[str, list[str]] = {}

    def browser(address: str) -> str:
        asked.update(parse_qs(urlsplit(address).query))
        return "http://127.0.0.1:1/?" + urlencode({"state": asked["state"][0], "code": "code-1"})

    way.sign_in_by_pasted_address(browser)
    assert asked["scope"] == ["https://mail.google.com/"]
    assert asked["code_challenge_method"] == ["S256"]
    assert server.asked[0][1]["code"] == "code-1"
    assert len(server.asked[0][1]["code_verifier"]) >= 43
    assert way.secret() == "access-1"


def test_a_pasted_address_of_another_sign_in_is_refused(tmp_path: Path, server: TokenServer) -> None:
    with pytest.raises(NeedsHuman, match="start again"):
        _oauth(tmp_path, server, "google").sign_in_by_pasted_address(lambda _a: "http://127.0.0.1:1/?state=x&code=y")


def test_a_token_that_a_server_refused_is_replaced_before_its_time(tmp_path: Path, server: TokenServer) -> None:
    tokens = {"access_token": "ended", "refresh_token": "r", "expires_at": time.time() + 600, "renew_at": time.time() + 500}
    credentials.write_private(_stored(tmp_path), json.dumps(tokens))
    server.answers = [(200, {"access_token": "fresh", "expires_in": 1000})]
    way = _oauth(tmp_path, server)
    assert way.secret() == "ended"
    way.refused()
    assert [way.secret(), way.secret()] == ["fresh", "fresh"]
    assert len(server.asked) == 1


def test_tokens_are_refreshed_before_they_end_and_replaced(tmp_path: Path, server: TokenServer) -> None:
    credentials.write_private(
        _stored(tmp_path),
        json.dumps({"access_token": "old", "refresh_token": "refresh-1", "expires_at": time.time() + 60, "renew_at": 0}),
    )
    server.answers = [(200, {"access_token": "access-2", "refresh_token": "refresh-2", "expires_in": 1000})]
    way = _oauth(tmp_path, server)
    assert way.secret() == "access-2"
    assert way.secret() == "access-2"  # no second request
    assert len(server.asked) == 1
    assert server.asked[0][1]["refresh_token"] == "refresh-1"
    assert json.loads(_stored(tmp_path).read_text())["refresh_token"] == "refresh-2"
    assert 700 < (way.session_seconds() or 0) <= 800  # reconnect at 80 % of its life


def test_a_withdrawn_sign_in_needs_a_person(tmp_path: Path, server: TokenServer) -> None:
    way = _oauth(tmp_path, server)
    with pytest.raises(NeedsHuman, match="postsale login shop"):
        way.secret()
    credentials.write_private(
        _stored(tmp_path), json.dumps({"access_token": "old", "refresh_token": "r", "expires_at": 0, "renew_at": 0})
    )
    server.answers = [(400, {"error": "invalid_grant"})]
    with pytest.raises(NeedsHuman, match="invalid_grant"):
        way.secret()


def test_a_token_server_in_trouble_is_transient_and_keeps_the_refresh_token(tmp_path: Path, server: TokenServer) -> None:
    credentials.write_private(
        _stored(tmp_path), json.dumps({"access_token": "old", "refresh_token": "r", "expires_at": 0, "renew_at": 0})
    )
    server.answers = [(503, {}), (200, {"access_token": "access-2", "expires_in": 1000})]
    way = _oauth(tmp_path, server)
    with pytest.raises(Transient):
        way.secret()
    assert way.secret() == "access-2"
    assert json.loads(_stored(tmp_path).read_text())["refresh_token"] == "r"


def _put(tmp_path: Path, **values: Any) -> None:
    """Tokens that are due for renewal and live for ten more minutes, unless ``values`` say otherwise."""
    tokens = {"access_token": "old", "refresh_token": "r", "expires_at": time.time() + 600, "renew_at": 0, **values}
    credentials.write_private(_stored(tmp_path), json.dumps(tokens))


def test_a_token_that_is_still_good_is_used_while_the_token_server_is_down(tmp_path: Path, server: TokenServer) -> None:
    tokens = {"access_token": "old", "refresh_token": "r", "expires_at": time.time() + 600, "renew_at": 0}
    credentials.write_private(_stored(tmp_path), json.dumps(tokens))
    server.answers = [(503, {})]
    way = _oauth(tmp_path, server)
    assert [way.secret(), way.secret()] == ["old", "old"]
    assert len(server.asked) == 1
    assert (way.session_seconds() or 0) > 50  # the connection is not made anew each second meanwhile


def test_a_withdrawn_sign_in_is_not_asked_for_again(tmp_path: Path, server: TokenServer) -> None:
    tokens = {"access_token": "old", "refresh_token": "r", "expires_at": time.time() + 600, "renew_at": 0}
    credentials.write_private(_stored(tmp_path), json.dumps(tokens))
    server.answers = [(400, {"error": "invalid_grant"})]
    for way in (_oauth(tmp_path, server), _oauth(tmp_path, server)):  # as reading and sending have
        with pytest.raises(NeedsHuman, match="invalid_grant"):
            way.secret()
        assert way.state().withdrawn
    assert len(server.asked) == 1


def test_a_renewal_that_fails_is_noted_until_one_works(tmp_path: Path, server: TokenServer) -> None:
    _put(tmp_path)
    server.answers = [(503, {}), (200, {"access_token": "access-2", "expires_in": 1000})]
    way, before = _oauth(tmp_path, server), time.time()
    assert way.secret() == "old"
    assert _oauth(tmp_path, server).secret() == "old"  # the other connections leave the server alone too
    assert len(server.asked) == 1
    state = way.state()
    assert (state.withdrawn, state.problem) == (False, "token server answers 503")
    assert state.failing_since is not None
    assert state.failing_since.timestamp() >= before
    _put(tmp_path, **{**json.loads(_stored(tmp_path).read_text()), "renew_at": 0})
    assert way.secret() == "access-2"
    assert (way.state().failing_since, way.state().problem) == (None, None)


def test_failures_in_a_row_count_from_the_first(tmp_path: Path, server: TokenServer) -> None:
    _put(tmp_path, failing_since=1000.0)
    server.answers = [(503, {})]
    _oauth(tmp_path, server).secret()
    assert json.loads(_stored(tmp_path).read_text())["failing_since"] == 1000.0


@pytest.mark.parametrize(
    ("values", "provider", "told", "days"),
    [
        ({}, "microsoft", {}, 90),
        ({}, "google", {}, 180),
        ({}, "google", {"refresh_token_expires_in": 604799}, 7),
        ({}, "google", {"refresh_token_expires_in": 0}, 180),
        ({"oauth_sign_in_days": 7}, "google", {}, 7),
        ({"oauth_idle_days": 14}, "microsoft", {}, 14),
    ],
)
def test_the_end_of_a_sign_in_is_known_from_the_server_or_from_its_policy(
    tmp_path: Path, server: TokenServer, values: dict[str, float], provider: str, told: dict[str, int], days: float
) -> None:
    way = _oauth(tmp_path, server, provider, **values)
    server.answers = [
        (200, {"device_code": "d", "user_code": "A", "verification_uri": "https://v.example", "interval": 1}),
        (200, {"access_token": "access-1", "refresh_token": "r", "expires_in": 3600, **told}),
    ]
    way.sign_in_by_device(lambda _url, _code: None, wait=lambda _seconds: None)
    state = way.state()
    assert state.sign_in_ends is not None
    assert abs(state.sign_in_ends.timestamp() - time.time() - days * 86400) < 60


def test_a_renewal_moves_the_end_of_an_idle_sign_in_but_not_that_of_a_fixed_one(tmp_path: Path, server: TokenServer) -> None:
    day, now = 86400, time.time()
    renewed = (200, {"access_token": "access-2", "refresh_token": "r2", "expires_in": 1000})
    for values, ends in (({}, now + 90 * day), ({"oauth_sign_in_days": 7}, now + 2 * day)):
        _put(tmp_path, signed_in_at=now - 5 * day, renewed_at=now - 5 * day)
        server.answers = [renewed]
        way = _oauth(tmp_path, server, **values)
        way.secret()
        state = way.state()
        assert state.sign_in_ends is not None
        assert abs(state.sign_in_ends.timestamp() - ends) < 60


def test_two_connections_renew_a_token_once(tmp_path: Path, server: TokenServer) -> None:
    """A provider that rotates refresh tokens would take the second use of one for theft."""
    _put(tmp_path)
    server.answers = [(200, {"access_token": "access-2", "refresh_token": "r2", "expires_in": 1000})]
    ways = [_oauth(tmp_path, server) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda way: way.secret(), ways)) == {"access-2"}
    assert len(server.asked) == 1


def test_before_the_first_sign_in_nothing_is_known(tmp_path: Path, server: TokenServer) -> None:
    assert _oauth(tmp_path, server).state() == credentials.TokenState()


def test_tokens_never_travel_readable(tmp_path: Path) -> None:
    with pytest.raises(PostsaleError, match="must be https"):
        credentials.post_form("http://token.example/token", {})


async def test_one_sign_in_opens_both_servers_and_survives_renewal(tmp_path: Path, server: TokenServer) -> None:
    """From the device code to IMAP and SMTP servers that check XOAUTH2, and on with the next token."""
    server.answers = [
        (200, {"device_code": "d", "user_code": "ABCD", "verification_uri": "https://v.example", "interval": 1}),
        (200, {"access_token": "access-1", "refresh_token": "refresh-1", "expires_in": 3600}),
        (200, {"access_token": "access-2", "refresh_token": "refresh-2", "expires_in": 3600}),
    ]
    way = _oauth(tmp_path, server)
    way.sign_in_by_device(lambda _url, _code: None, wait=lambda _seconds: None)
    mail_in, mail_out = FakeImap(capabilities="IMAP4rev1 AUTH=XOAUTH2"), FakeSmtp()
    for token in ("access-1", "access-2"):
        mail_in.token = mail_out.token = token
        imap = Imap(ImapConfig(host="127.0.0.1", port=mail_in.port, tls=TlsMode.NONE), way)
        smtp = Smtp(SmtpConfig(host="127.0.0.1", port=mail_out.port, tls=TlsMode.NONE), way, final_reply_seconds=5)
        assert "INBOX is open" in await imap.ping()
        assert await smtp.ping() == "signed in"
        await imap.close()
        await smtp.close()
        stored = json.loads(_stored(tmp_path).read_text())
        credentials.write_private(_stored(tmp_path), json.dumps({**stored, "renew_at": 0}))
    assert json.loads(_stored(tmp_path).read_text())["refresh_token"] == "refresh-2"
    mail_in.close()
    mail_out.close()
