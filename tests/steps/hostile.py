"""Messages made to break a reader. Each is a name and bytes; shapes follow published faults of mail libraries."""

from __future__ import annotations

from collections.abc import Iterator


def _mail(header: str | bytes = b"", body: str | bytes = b"", content_type: str = "text/plain; charset=utf-8") -> bytes:
    head = header.encode() if isinstance(header, str) else header
    rest = body.encode("utf-8", "replace") if isinstance(body, str) else body
    return b"From: a@b.example\nSubject: x\nContent-Type: " + content_type.encode() + b"\n" + head + b"\n" + rest


def nested(depth: int, leaf: bytes = b"deep text") -> bytes:
    out = b"Content-Type: text/plain\n\n" + leaf
    for level in range(depth):
        mark = b"b%d" % level
        out = b"Content-Type: multipart/mixed; boundary=" + mark + b"\n\n--" + mark + b"\n" + out + b"\n--" + mark + b"--\n"
    return b"From: a@b.example\nSubject: x\n" + out


def messages() -> Iterator[tuple[str, bytes]]:
    n = 20_000
    yield "nothing", b""
    yield "one newline", b"\n"
    yield "zero bytes", b"\x00" * 5000
    yield "random high bytes", bytes(range(256)) * 200
    yield "lone carriage returns", b"From: a@b.example\rSubject: x\r\rhello\r"
    yield "no header", b"just some text\nand more\n"
    yield "no body", b"From: a@b.example\nSubject: x"
    yield "semicolons in content type", b"From: a@b.example\nContent-Type: text/plain" + b";" * 32_000 + b"\n\nhello"
    yield "quotes in from", b"From: " + b'"' * 32_000 + b"\n\nhello"
    yield "words in from", b"From: " + b"w " * 16_000 + b"\n\nhello"
    yield "parens in from", b"From: " + b"(" * 10_000 + b"\n\nhello"
    yield "groups in from", b"From: a:;;;;\n\nhello"
    yield "angles in from", b"From: " + b"<" * 10_000 + b"\n\nhello"
    yield "commas in to", b"From: a@b.example\nTo: " + b"," * 15_000 + b"\n\nhello"
    yield "addresses in to", b"From: a@b.example\nTo: " + b"a@b.example, " * 1_200 + b"\n\nhello"
    yield "encoded newline in from", b"From: =?utf-8?q?a=0d=0aBcc:_evil@x.example?= <a@b.example>\n\nhello"
    yield "encoded newline in subject", b"From: a@b.example\nSubject: =?utf-8?q?a=0d=0aBcc=3a_evil?=\n\nhello"
    yield "encoded words without end", b"From: a@b.example\nSubject: " + b"=?utf-8?q?" * 1_500 + b"\n\nhello"
    yield "many encoded words", b"From: a@b.example\nSubject: " + b"=?utf-8?b?w6Q=?= " * 900 + b"\n\nhello"
    yield "header of one megabyte", b"From: a@b.example\nSubject: " + b"x" * 1_000_000 + b"\n\nhello"
    yield "fifty thousand fields", b"From: a@b.example\n" + b"X-A: b\n" * 50_000 + b"\nhello"
    yield "folded for ever", b"From: a@b.example\nSubject: x\n" + b" y\n" * 50_000 + b"\nhello"
    yield "references for ever", b"From: a@b.example\nReferences: " + b"<a@b> " * 3_000 + b"\n\nhello"
    yield "nested 19 deep", nested(19)
    yield "nested 1000 deep", nested(1_000)
    yield "one hundred thousand parts", _mail(b"", b"--b\n\nx\n" * 100_000 + b"--b--\n", "multipart/mixed; boundary=b")
    yield "boundary of dashes", _mail(b"", b"-----\n" * 50_000, "multipart/mixed; boundary=---")
    yield "boundary is empty", _mail(b"", b"--\n\nhello\n----\n", 'multipart/mixed; boundary=""')
    yield "boundary never comes", _mail(b"", b"hello without boundary", "multipart/mixed; boundary=b")
    yield "boundary not named", _mail(b"", b"--z\nContent-Type: text/plain\n\nhello\n--z--\n", "multipart/mixed")
    yield "messages in messages", b"From: a@b.example\n" + b"Content-Type: message/rfc822\n\n" * 3_000 + b"hello"
    for charset in (
        "undefined",
        "hex",
        "idna",
        "unicode_escape",
        "utf-7",
        "no\x00such",
        "x" * 500,
        "iso-2022-jp",
        "utf-16",
        "utf-32",
        "rot13",
        "punycode",
        "base64",
    ):
        yield f"charset {charset[:20]!r}", _mail(b"", b"hello \xe4 world +AGE- \\u0041", f"text/plain; charset={charset}")
    yield "gb18030 called gb2312", _mail(b"", "喆镕㐂 退款".encode("gb18030"), "text/plain; charset=gb2312")
    yield "bad base64", _mail(b"Content-Transfer-Encoding: base64\n", b"this is not base64 at all!")
    yield "base64 with a footer", _mail(b"Content-Transfer-Encoding: base64\n", b"aGVsbG8gd29ybGQ=\n\n-- \nlist footer here\n")
    yield "quoted printable junk", _mail(b"Content-Transfer-Encoding: quoted-printable\n", b"=" * 50_000)
    yield "unknown encoding", _mail(b"Content-Transfer-Encoding: x-nothing\n", b"hello")
    yield "uuencode without data", _mail(b"Content-Transfer-Encoding: x-uuencode\n", b"begin 644 a\n!!!!\nend\n")
    yield "winmail that is none", _mail(b"", b"x\x9f>\x22" + b"\xff" * 2000, "application/ms-tnef; name=winmail.dat")
    html = "text/html; charset=utf-8"
    for name, piece in (
        ("lists", b"<ul><li>"), ("anchors", b"<a "), ("comments", b"<!--"), ("marked sections", b"<!["), ("tags", b"<"), ("divs", b"<div>"), ("tables", b"<table><tr><td>"),
        ("quotes", b"<blockquote>"), ("fonts", b"<font><b><i>"), ("entities", b"&amp;&#x41;&"), ("ends", b"</div>"), ("scripts", b"<script>"), ("attributes", b'<p a="'), ("forms", b"<form><select><option>"),
        ("closers", b"<p></b>"), ("nested anchors", b"<a><div>"), ("doctype", b"<!DOCTYPE "),
    ):  # fmt: skip
        yield f"html {name}", _mail(b"", b"hello " + piece * n, html)
    for name, text in (
        ("on", "On " * n), ("wrote", "wrote:\n" * n), ("quotes", ">" * n), ("quoted lines", "> x\n" * n), ("newlines", "\n" * n), ("dashes", "-" * n), ("dashed lines", "--\n" * n), ("rules", "-----\n" * n),
        ("from lines", "From: a@b.example\n" * n), ("header block", "From: a@b.example\nSent: x\nTo: b\n" * (n // 3)), ("angles", "<" * n), ("ats", "a@" * n), ("colons", ":\n" * n), ("dates", "On Mon, 3 Mar 2026 at 16:05\n" * (n // 4)),
        ("wrote without end", "On Mon, 3 Mar 2026 at 16:05, " + "a " * n), ("brackets", "(" * n + ")" * n), ("spaces", " " * n), ("tabs", "\t" * n), ("markers", "------------- Message: -------------\n" * (n // 20)), ("ends", "------------- End message -------------\n" * (n // 20)),
        ("hashes", "# 1\n" * n), ("order ids", "111-0000001-0000001 " * (n // 5)), ("dash runs", "1-" * n), ("digits", "1" * n), ("urls", "https://a.example/ " * (n // 5)), ("regards", "Regards,\n" * (n // 2)), ("thanks", "Thanks,\nBob\n" * (n // 4)),
        ("sent from", "Sent from my iPhone\n" * (n // 4)), ("han", "退款" * n), ("kana", "キャンセル" * (n // 2)), ("combining", "e\u0301" * n), ("zero width", "\u200b" * n), ("emoji", "😀" * n), ("underscores", "_" * n), ("stars", "*" * n), ("forwarded", "---------- Forwarded message ---------\n" * (n // 10)),
        ("labels", "Name:\n" * n), ("names", "A B C D E F\n" * (n // 4)), ("not", "not " * n), ("fire", "fire " * n), ("a lot of words", "I am currently " * (n // 5)), ("auto", "automatic " * (n // 5)), ("brackets asin", "1 / x [ASIN: " * (n // 5)), ("image tags", "[cid:image001.png@01D]\n" * (n // 10)), ("pgp", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: x\n" * (n // 20)),
        ("final recipients", "Final-Recipient: rfc822; a@b.example\n" * (n // 10)), ("statuses", "550 5.1.1 " * (n // 5)), ("message ids", "Message-ID: <a@b.example>\n" * (n // 10)), ("mixed ends", "\r\r\n\n\r" * (n // 2)), ("one line", "x" * 1_000_000),
    ):  # fmt: skip
        yield f"text {name}", _mail(b"", text)
    yield "subject full of re", b"From: a@b.example\nSubject: " + b"Re: " * 4_000 + b"\n\nhello"
    yield "subject full of absence", b"From: a@b.example\nSubject: " + b"out of " * 2_000 + b"\n\nhello"
    yield "auto-submitted of comments", b"From: a@b.example\nAuto-Submitted: " + b"(" * 8_000 + b")" * 8_000 + b" no\n\nhello"
    yield (
        "authentication results of comments",
        b"Authentication-Results: mx.lakeside.example; " + b"(" * 8_000 + b"\nFrom: a@b.example\n\nhello",
    )
    yield (
        "authentication results repeated",
        b"Authentication-Results: mx.lakeside.example; dmarc=pass\n" * 900 + b"From: a@b.example\n\nhello",
    )
    yield "long local part", b"From: " + b"a" * 15_000 + b"@b.example\n\nhello"
    yield "long domain", b"From: a@" + b"b." * 7_000 + b"example\n\nhello"
    yield "flowed for ever", _mail(b"", "word \n" * n, "text/plain; format=flowed; delsp=yes")
    yield "calendar junk", _mail(b"", "METHOD:" * n, "text/calendar")
    yield (
        "file name with a path",
        _mail(b'Content-Disposition: attachment; filename="../../etc/passwd\\x00.txt"\n', b"x", "application/octet-stream"),
    )
    yield (
        "parameters in sections",
        _mail(
            b"Content-Disposition: attachment; " + b"; ".join(b"filename*%d*=a%%2" % i for i in range(500)) + b"\n",
            b"x",
            "application/pdf",
        ),
    )
