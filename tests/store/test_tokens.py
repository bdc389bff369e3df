"""Words that may be tokens are found in a mail however it is written."""

from __future__ import annotations

import base64
import quopri
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.store.tokens import new_token, parsed_words_like_tokens, token_of, words_like_tokens

TOKEN = "abcdefghijklmnopqrstuvwx23"
OWN = "<r.zyxwvutsrqponmlkjihgfedc76@shop.test>"
HEAD = f"From: a@shop.test\r\nTo: b@c.test\r\nSubject: Re: order\r\nMessage-ID: {OWN}\r\nX-Postsale-Outbox: {OWN}\r\n"


def written(body: bytes, encoding: str, *, head: str = "") -> bytes:
    return (
        f"{HEAD}{head}Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + body
    )


@pytest.mark.parametrize(
    "mime",
    [
        written(f"Hello {TOKEN}!\r\n".encode(), "7bit"),
        written(f"Grüße {TOKEN.upper()}\r\n".encode(), "8bit"),
        written(f"shop+ok-{TOKEN}@shop.test\r\n".encode(), "quoted-printable"),
        written(f"{TOKEN[:9]}=\r\n{TOKEN[9:]}\r\n".encode(), "quoted-printable"),
        written(f"{TOKEN[:9]}=\n{TOKEN[9:]}\n".encode(), "quoted-printable"),
        written(f"{TOKEN[:9]}=\rx\n{TOKEN[9:]}\r\n".encode(), "quoted-printable"),
        written(f"=61{TOKEN[1:]}\r\n".encode(), "quoted-printable"),
        written(f"{TOKEN[:-2]}=32=33\r\n".encode(), "quoted-printable"),
        written(base64.encodebytes(f"Hello {TOKEN}".encode()), "base64"),
        written(base64.encodebytes(f"Hello {TOKEN}".encode()), "BASE64"),
        written(base64.encodebytes(f"Hello {TOKEN}".encode()).replace(b"\n", b"\r\n"), "base64"),
        written(b"-- " + base64.encodebytes(f"Hello {TOKEN}".encode()), "base64"),
        written(f"{TOKEN}\r\n".encode(), "base64", head="Content-Transfer-Encoding: 7bit\r\n"),
        written(base64.b64encode(TOKEN.encode()), "base64", head="Content-Type: multipart/mixed; boundary=x\r\n"),
        written(f"Hello\r\nMessage-ID: <r.{TOKEN}@shop.test>\r\n".encode(), "7bit"),
        f"From: a@shop.test\r\n\r\nMessage-ID: <r.{TOKEN}@shop.test>\r\n".encode(),
        written(b"Hello\r\n", "7bit", head=f"References: <p@x> {TOKEN}\r\n"),
        written(b"Hello\r\n", "7bit", head=f"Comments: =?utf-8?b?{base64.b64encode(TOKEN.encode()).decode()}?=\r\n"),
        written(b"Hello\r\n", "7bit", head=f"Comments: =?utf-8?q?=61{TOKEN[1:]}?=\r\n"),
    ],
)
def test_a_token_is_found(mime: bytes) -> None:
    assert TOKEN in words_like_tokens(mime)


def test_the_mails_own_message_id_is_none_and_an_ordinary_mail_has_none() -> None:
    assert words_like_tokens(written(b"Your lamp is on its way.\r\n", "7bit")) == frozenset()
    assert words_like_tokens(written(f"as in {OWN[:-1].replace('@', '@x')}>\r\n".encode(), "7bit")) == {OWN[3:29]}


def _in_lines(text: bytes) -> bytes:
    return base64.encodebytes(text).replace(b"\n", b"\r\n")


@given(
    st.lists(
        st.sampled_from([TOKEN, TOKEN.upper(), "a", "=", "\r\n", "\n", " ", "ü", "ſ", "6", "1", "=\r\n", "Hello", "\r", "-"])
    ),
    st.sampled_from(["7bit", "8bit", "quoted-printable", "raw quoted-printable", "base64"]),
)
def test_nothing_that_a_full_parse_finds_is_missed(pieces: list[str], encoding: str) -> None:
    text = "".join(pieces).encode()
    body = {"quoted-printable": quopri.encodestring, "base64": _in_lines}.get(encoding, bytes)(text)
    mime = written(body, encoding.removeprefix("raw "))
    assert words_like_tokens(mime) >= parsed_words_like_tokens(mime)


def test_letters_that_only_look_like_a_tokens_make_none() -> None:
    assert token_of(f"shop+ok-{TOKEN.upper()}@shop.test") == TOKEN
    for letter, alike in (("s", "ſ"), ("k", "\N{KELVIN SIGN}")):
        other = TOKEN.replace(letter, alike)
        assert token_of(f"shop+ok-{other}@shop.test") is None
        assert words_like_tokens(written(other.encode(), "8bit")) == frozenset()
        assert parsed_words_like_tokens(written(other.encode(), "8bit")) == frozenset()


def test_as_the_email_package_writes_it() -> None:
    token = new_token()
    for charset, text in (("utf-8", f"Grüße {token}, 您好"), ("us-ascii", f"{'x ' * 30}{token} {'y' * 80}"), ("utf-8", token)):
        for cte in ("quoted-printable", "base64", None):
            mail = EmailMessage()
            mail["Message-ID"] = OWN
            mail.set_content(text, charset=charset, cte=cte)
            assert words_like_tokens(mail.as_bytes()) == {token}
