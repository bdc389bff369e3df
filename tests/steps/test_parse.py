"""Bytes to values: nothing raises, nothing readable is lost, nothing hostile gets through."""

from __future__ import annotations

import base64
from email.header import Header
from email.message import EmailMessage
from email.utils import format_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.clock import SystemClock
from daemon.mime import limits
from daemon.mime.headers import address_list, decode_words, file_name, message_ids, parameters, parse_date
from daemon.steps.parse import parse
from tests.growth import cost
from tests.steps import hostile
from tests.steps.pipeline import read

HOSTILE = list(hostile.messages())
#: What reading a hostile mail may cost, in ordinary mails of the same size: the dearest of today costs nine.
HOSTILE_COST = 40


@pytest.mark.parametrize(("name", "raw"), HOSTILE, ids=[name for name, _ in HOSTILE])
def test_hostile_mail_costs_no_more_than_some_ordinary_mails_of_its_size(name: str, raw: bytes) -> None:
    line = b"Where is my order? It should be here by now.\n"
    ordinary = b"From: buyer@shop.example\nSubject: my order\n\n" + line * (len(raw) // len(line))
    assert cost(lambda: read(raw)) < HOSTILE_COST * cost(lambda: read(ordinary)), name
    mail, _, _, verdict = read(raw)
    assert verdict.reason
    assert len(mail.text) <= limits.TEXT_CHARS
    assert len(mail.part_types) <= limits.PARTS + 1


@given(st.binary(max_size=3000))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_message(raw: bytes) -> None:
    mail, _, _, verdict = read(raw)
    assert mail.size == len(raw)
    assert verdict.reason


@given(
    st.lists(
        st.sampled_from(
            [
                b"From: a@b.example\n",
                b"Subject: =?utf-8?q?x=0d=0ay?=\n",
                b"Content-Type: multipart/mixed; boundary=b\n",
                b"\n",
                b"--b\n",
                b"--b--\n",
                b"Content-Type: text/html\n\n<p>x",
                b"\xff\xfe",
                b"Content-Transfer-Encoding: base64\n",
                b"aGVsbG8=\n",
                b"> quoted\n",
                b"-- \n",
            ]
        ),
        max_size=30,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_order_of_pieces_is_a_message(pieces: list[bytes]) -> None:
    read(b"".join(pieces))


def _has_control(text: str) -> bool:
    return any((ord(char) < 32 and char != "\t") or 127 <= ord(char) < 160 for char in text)


@given(st.text(max_size=200), st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=200, deadline=None)
@example("a\r\nBcc: evil@x.example", "b\nc", "d\u2028e")
def test_header_values_hold_no_control_characters(subject: str, name: str, file: str) -> None:
    """Header safety: what comes out can be shown, logged and compared without carrying a second field."""
    encoded = (
        Header(subject.encode("utf-8", "replace").decode(), "utf-8").encode(linesep="\n") if subject.isprintable() else "x"
    )
    quoted = "".join(f"={byte:02X}" for byte in subject.encode("utf-8", "replace"))
    raw = (
        f"From: =?utf-8?q?{''.join(f'={byte:02X}' for byte in name.encode('utf-8', 'replace'))}?= <a@b.example>\n"
        f'Subject: =?utf-8?q?{quoted}?=\nX-Other: {encoded}\nContent-Type: application/pdf; name="=?utf-8?q?{"".join(f"={byte:02X}" for byte in file.encode("utf-8", "replace"))}?="\n\nx'
    ).encode("utf-8", "replace")
    mail = parse(raw)
    shown = [
        mail.subject,
        *(value for _, value in mail.headers),
        *(address.name for address in mail.from_),
        *(item.name for item in mail.attachments),
    ]
    assert not any(_has_control(text) or "\n" in text for text in shown)
    assert [address.addr for address in mail.from_] in ([], ["a@b.example"])
    assert all("/" not in item.name and "\\" not in item.name for item in mail.attachments)


_PLAIN = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf", "Co", "Cn"]), min_size=1, max_size=120
)


@given(subject=_PLAIN, body=st.lists(_PLAIN, min_size=1, max_size=8), name=_PLAIN)
@settings(max_examples=200, deadline=None)
def test_what_a_mail_program_writes_is_read_back(subject: str, body: list[str], name: str) -> None:
    message = EmailMessage()
    message["From"] = "a@b.example"
    message["To"] = "c@d.example"
    message["Subject"] = subject
    message["Message-ID"] = "<one@b.example>"
    message.set_content("\n".join(body))
    message.add_attachment(b"12345", maintype="application", subtype="pdf", filename=name.replace("/", "_").replace("\\", "_"))
    mail = parse(message.as_bytes())
    assert " ".join(mail.subject.split()) == " ".join(subject.split())
    assert " ".join(mail.text.split()) == " ".join("\n".join(body).split())
    assert mail.message_id == "<one@b.example>"
    assert [item.size for item in mail.attachments] == [5]
    assert mail.from_addr is not None
    assert not mail.from_defect


@given(
    st.sampled_from(
        [
            "gb18030",
            "big5",
            "shift_jis",
            "iso-2022-jp",
            "euc-jp",
            "euc-kr",
            "koi8-r",
            "windows-1251",
            "windows-1252",
            "utf-8",
            "utf-16",
        ]
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_charsets_are_read(charset: str, labelled: bool) -> None:
    samples = {
        "gb18030": "退款什么时候到",
        "big5": "請問何時退款",
        "shift_jis": "まだ届いていません",
        "iso-2022-jp": "まだ届いていません",
        "euc-jp": "まだ届いていません",
        "euc-kr": "환불은 언제",
        "koi8-r": "Где моя посылка",
        "windows-1251": "Где моя посылка",
        "windows-1252": "Où est mon colis é",
        "utf-8": "Größe ñ 退",
        "utf-16": "Größe ñ 退",
    }
    text = samples[charset]
    label = (
        f"; charset={charset}"
        if labelled or charset == "utf-16"
        else "; charset=iso-8859-1"
        if charset == "utf-8"
        else f"; charset={charset}"
    )
    raw = f"From: a@b.example\nContent-Type: text/plain{label}\nContent-Transfer-Encoding: base64\n\n".encode()
    assert parse(raw + base64.b64encode(text.encode(charset))).text == text


def test_labels_that_lie() -> None:
    def text_of(data: bytes, label: str) -> str:
        return parse(b"From: a@b.example\nContent-Type: text/plain; charset=" + label.encode() + b"\n\n" + data).text

    assert text_of("喆镕 退款".encode("gb18030"), "gb2312") == "喆镕 退款"
    assert text_of("Größe".encode(), "iso-8859-1") == "Größe"
    assert text_of("Größe".encode("cp1252"), "utf-8") == "Größe"
    assert text_of("„Größe“ – 5 €".encode("cp1252"), "iso-8859-1") == "„Größe“ – 5 €"
    assert text_of("まだ届いていません".encode("iso2022_jp"), "us-ascii") == "まだ届いていません"
    assert text_of("①まだ".encode("cp932"), "shift_jis") == "①まだ"
    assert text_of(b"hello", "utf-16") == "hello"


def test_text_is_found_wherever_it_is() -> None:
    head = b"From: a@b.example\nMIME-Version: 1.0\n"
    found = {
        "boundary missing": head + b"Content-Type: multipart/mixed\n\n--q\nContent-Type: text/plain\n\nhello\n--q--\n",
        "boundary wrong": head + b"Content-Type: multipart/mixed; boundary=z\n\nhello",
        "last boundary missing": head + b"Content-Type: multipart/mixed; boundary=z\n\n--z\n\nhello",
        "preamble only": head
        + b"Content-Type: multipart/mixed; boundary=z\n\nhello\n--z\nContent-Type: image/png\n\nx\n--z--\n",
        "epilogue only": head
        + b"Content-Type: multipart/mixed; boundary=z\n\n--z\nContent-Type: image/png\n\nx\n--z--\nhello\n",
        "html called plain": head + b"Content-Type: text/plain\n\n<html><body><p>hello</p></body></html>",
        "type nobody knows": head + b"Content-Type: nonsense\n\nhello",
        "plain part empty": head
        + b"Content-Type: multipart/alternative; boundary=z\n\n--z\nContent-Type: text/plain\n\n \n--z\nContent-Type: text/html\n\n<p>hello</p>\n--z--\n",
        "stub beside html": head
        + b"Content-Type: multipart/alternative; boundary=z\n\n--z\nContent-Type: text/plain\n\nYour e-mail client does not support HTML.\n--z\nContent-Type: text/html\n\n<div style='x'>"
        + b"<b></b>" * 40
        + b"<p>hello</p></div>\n--z--\n",
        "attached message only": head + b"Content-Type: message/rfc822\n\nSubject: x\n\nhello",
        "plain text called base64": head + b"Content-Transfer-Encoding: base64\n\nhello",
        "flowed": head + b"Content-Type: text/plain; format=flowed; delsp=yes\n\nhel \nlo",
        "opaque signature": head
        + b"Content-Type: application/pkcs7-mime; name=smime.p7m\n\n\x30\x80\x06Content-Type: text/plain\n\nhello",
        "no blank line after the header": head + b"hello there",
    }
    texts = {name: parse(raw).text.strip() for name, raw in found.items()}
    assert {
        name: text for name, text in texts.items() if text not in ("hello", "hello there") and not text.startswith("hello")
    } == {}


def test_text_nested_too_deep_is_still_shown() -> None:
    mail = parse(hostile.nested(40, b"hello from below"))
    assert "hello from below" in mail.text
    assert "nested_too_deep" in mail.defects


def test_where_one_part_fails_the_others_are_read() -> None:
    mail = parse(
        b"From: a@b.example\nContent-Type: multipart/mixed; boundary=z\n\n--z\nContent-Type: text/plain; charset=undefined\nContent-Transfer-Encoding: base64\n\n!!!!\n"
        b"--z\nContent-Type: text/plain\n\nhello\n--z\nContent-Type: image/jpeg; name=a.jpg\nContent-Transfer-Encoding: base64\n\n/9j/4AAQ\n--z--\n"
    )
    assert "hello" in mail.text
    assert [(item.name, item.type, item.size) for item in mail.attachments] == [("a.jpg", "image/jpeg", 6)]


@pytest.mark.parametrize(
    ("value", "addresses", "defect"),
    [
        ("Grace Moore <grace@post.example>", ["grace@post.example"], False),
        ('"Moore, Grace" <Grace@POST.example>', ["Grace@post.example"], False),
        ("Moore, Grace <grace@post.example>", ["grace@post.example"], False),
        ("=?iso-8859-1?Q?M=FCller,_Anna?= <anna@post.example>", ["anna@post.example"], False),
        ("grace@post.example (Grace Moore)", ["grace@post.example"], False),
        ("a@x.example, B <b@x.example>", ["a@x.example", "b@x.example"], False),
        ("Staff: a@x.example, b@x.example;", ["a@x.example", "b@x.example"], False),
        ("undisclosed-recipients:;", [], True),
        ("user@example.com <evil@evil.example>", ["evil@evil.example"], True),
        ("alice@example.org)bob@evil.example", [], True),
        ("<ok@corp.example> <x@evil.example>", ["ok@corp.example"], True),
        ("<ok@corp.example> x@evil.example", ["ok@corp.example"], True),
        ('"ok@corp.example" <x@evil.example>', ["x@evil.example"], False),
        ("ok@corp.example(x@evil.example)", ["ok@corp.example"], False),
        ("x(comment)@evil.example", [], True),
        ("<>", [], True),
        ('"unclosed <a@b.example>', [], True),
        ("a b@c.example", ["b@c.example"], True),
    ],
)
def test_addresses(value: str, addresses: list[str], defect: bool) -> None:
    found = address_list(value)
    assert [address.addr for address in found.addresses] == addresses
    assert found.defect is defect


def test_identity_of_a_message() -> None:
    raw = b"Received: by x\nMessage-ID: <a@b.example>\nFrom: a@b.example\nSubject: x\n\nhello\n"
    again = raw.replace(b"by x", b"by y").replace(b"\n", b"\r\n")
    other = raw.replace(b"hello", b"hullo")
    assert parse(raw).content_key == parse(again).content_key
    assert parse(raw).content_key != parse(other).content_key
    assert parse(raw).raw_sha256 != parse(again).raw_sha256


def test_small_readers() -> None:
    assert decode_words("=?utf-8?q?=E5?= =?utf-8?q?=A5=BD?=") == "好"
    assert decode_words("=?utf-8?b?5aW9?= plain =?nonsense?q?x?=") == "好 plain x"
    assert message_ids("<a@b> junk <c@d> <no space @x>") == ("<a@b>", "<c@d>")
    assert parameters("Text/Plain; charset=\"a;b\"; name*0*=utf-8''%E5%A5; name*1*=%BD") == (
        "text/plain",
        {"charset": "a;b", "name": "好"},
    )
    assert file_name("..\\..\\evil/../a.txt. ") == "a.txt"
    moment = parse_date("Tue, 3 Mar 2026 16:05:11 +0100 (CET)")
    assert moment is not None
    assert moment.isoformat() == "2026-03-03T15:05:11+00:00"
    assert parse_date("32 Foo 99999") is None
    now = SystemClock().now().replace(microsecond=0)
    assert parse_date(format_datetime(now)) == now
