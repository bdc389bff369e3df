"""Bytes to text when the label is missing, unknown, or a lie.

Labels are mapped to codecs by a closed table (a label is never handed to
``codecs.lookup``, which also knows ``hex``, ``idna`` and ``unicode_escape``),
and to the superset that mail programs mean: GB2312 is read as GB18030,
Latin-1 as windows-1252, Shift_JIS as cp932 (WHATWG Encoding Standard, and the
practice of mail clients).
"""

from __future__ import annotations

import re
from typing import Final

_CODECS: Final[dict[str, str]] = {
    "utf8": "utf-8", "unicode11utf8": "utf-8", "utf8mb4": "utf-8", "cputf8": "utf-8", "65001": "utf-8", "cp65001": "utf-8",
    "utf7": "utf-7", "unicode11utf7": "utf-7",
    "utf16": "utf-16", "utf16le": "utf-16-le", "utf16be": "utf-16-be", "utf32": "utf-32", "ucs2": "utf-16",
    "usascii": "cp1252", "ascii": "cp1252", "ansix341968": "cp1252", "iso646us": "cp1252", "646": "cp1252",
    "iso88591": "cp1252", "latin1": "cp1252", "l1": "cp1252", "cp819": "cp1252", "8859": "cp1252", "iso8859": "cp1252",
    "iso88592": "iso8859-2", "latin2": "iso8859-2", "iso88593": "iso8859-3", "iso88594": "iso8859-4",
    "iso88595": "iso8859-5", "cyrillic": "iso8859-5", "iso88596": "iso8859-6", "arabic": "iso8859-6", "iso88597": "iso8859-7",
    "greek": "iso8859-7", "iso88598": "iso8859-8", "iso88598i": "iso8859-8", "iso88598e": "iso8859-8", "hebrew": "iso8859-8",
    "iso88599": "cp1254", "latin5": "cp1254", "iso885910": "iso8859-10", "iso885911": "cp874", "iso885913": "iso8859-13",
    "iso885914": "iso8859-14", "iso885915": "iso8859-15", "latin9": "iso8859-15", "iso885916": "iso8859-16",
    "tis620": "cp874", "windows874": "cp874", "cp874": "cp874", "dos874": "cp874",
    "windows1250": "cp1250", "windows1251": "cp1251", "windows1252": "cp1252", "windows1253": "cp1253", "windows1254": "cp1254",
    "windows1255": "cp1255", "windows1256": "cp1256", "windows1257": "cp1257", "windows1258": "cp1258", "windowslatin1": "cp1252",
    "cp1250": "cp1250", "cp1251": "cp1251", "cp1252": "cp1252", "cp1253": "cp1253", "cp1254": "cp1254", "cp1255": "cp1255",
    "cp1256": "cp1256", "cp1257": "cp1257", "cp1258": "cp1258", "win1251": "cp1251", "ansi": "cp1252",
    "cp437": "cp437", "ibm437": "cp437", "cp850": "cp850", "ibm850": "cp850", "cp852": "cp852", "ibm852": "cp852", "cp858": "cp858",
    "cp866": "cp866", "ibm866": "cp866", "koi8r": "koi8-r", "koi8": "koi8-r", "koi8u": "koi8-u", "koi8ru": "koi8-u",
    "macintosh": "mac-roman", "macroman": "mac-roman", "xmacroman": "mac-roman", "mac": "mac-roman", "xmaccyrillic": "mac-cyrillic",
    "xmacce": "mac-latin2",
    "gb2312": "gb18030", "gb231280": "gb18030", "gb23121980": "gb18030", "csgb2312": "gb18030", "euccn": "gb18030", "cngb": "gb18030",
    "gbk": "gb18030", "xgbk": "gb18030", "cp936": "gb18030", "ms936": "gb18030", "windows936": "gb18030", "gb18030": "gb18030",
    "gb180302005": "gb18030", "gb": "gb18030", "chinese": "gb18030", "hzgb2312": "hz", "hz": "hz", "iso2022cn": "gb18030",
    "big5": "cp950", "xxbig5": "cp950", "cnbig5": "cp950", "csbig5": "cp950", "big5tw": "cp950", "cp950": "cp950", "ms950": "cp950",
    "windows950": "cp950", "big5hkscs": "big5hkscs", "big5eten": "cp950", "euctw": "cp950",
    "shiftjis": "cp932", "sjis": "cp932", "xsjis": "cp932", "csshiftjis": "cp932", "mskanji": "cp932", "cp932": "cp932", "ms932": "cp932",
    "windows31j": "cp932", "cswindows31j": "cp932", "windows932": "cp932", "shiftjis2004": "shift_jis_2004",
    "eucjp": "euc_jis_2004", "xeucjp": "euc_jis_2004", "ujis": "euc_jis_2004", "cseucpkdfmtjapanese": "euc_jis_2004", "eucjpms": "euc_jis_2004",
    "iso2022jp": "iso2022_jp_ext", "csiso2022jp": "iso2022_jp_ext", "iso2022jp1": "iso2022_jp_1", "iso2022jp2": "iso2022_jp_2",
    "iso2022jp3": "iso2022_jp_3", "iso2022jpms": "iso2022_jp_ext", "cp50220": "iso2022_jp_ext", "cp50221": "iso2022_jp_ext", "jis": "iso2022_jp_ext",
    "euckr": "cp949", "ksc56011987": "cp949", "ksc5601": "cp949", "kscksc5601": "cp949", "ksc56011989": "cp949", "cp949": "cp949",
    "windows949": "cp949", "uhc": "cp949", "korean": "cp949", "johab": "johab", "iso2022kr": "iso2022_kr",
    "viscii": "cp1258", "tcvn": "cp1258",
}  # fmt: skip

_SEVEN_BIT: Final = frozenset({"utf-7", "hz", "iso2022_jp_ext", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_3", "iso2022_kr"})
_WIDE: Final = frozenset({"utf-16", "utf-16-le", "utf-16-be", "utf-32"})
_MULTI: Final = frozenset({"gb18030", "cp950", "big5hkscs", "cp932", "shift_jis_2004", "euc_jis_2004", "cp949", "johab"})
_JIS_ESCAPE: Final = re.compile(rb"\x1b(?:\$[@B(]|\([BJI])")
_HIGH: Final = re.compile(rb"[\x80-\xff]")
_SAMPLE: Final = 16 * 1024

# Control characters other than tab and newline, unpaired surrogates, and the bidirectional overrides that can make
# an address or a file name look like another one.
_UNWANTED: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_LINE_ENDS: Final = re.compile("\r\n?|\x85|\u2028|\u2029")


def codec_of(label: str | None) -> str | None:
    """The codec that a charset label stands for, or None for a label that mail does not use."""
    if not label:
        return None
    key = re.sub(r"[^a-z0-9]", "", label.lower()[:64])
    found = _CODECS.get(key)
    if found is None and key.startswith("cs"):
        found = _CODECS.get(key[2:])
    if found is None and key.startswith("x"):
        found = _CODECS.get(key[1:])
    return found


def decode(data: bytes, label: str | None = None) -> str:
    """Text of ``data``; the label is believed unless the bytes contradict it. Never raises, never empties."""
    codec = codec_of(label)
    if codec in _WIDE:
        return _decode_wide(data, codec)
    if data.isascii():
        return _decode_ascii(data, codec)
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
        codec = "utf-8"
    utf8 = _strictly(data, "utf-8")
    if codec is None or codec == "utf-8":
        return utf8 if utf8 is not None else _guess(data, codec)
    if utf8 is not None and (codec not in _MULTI or _strictly(data, codec) is None):
        return utf8  # chance text in another charset is hardly ever valid UTF-8
    text = _strictly(data, codec)
    if text is not None:
        return text
    return _guess(data, codec)


def clean(text: str) -> str:
    """Text with newlines only as ``\\n`` and free of control characters (tabs stay)."""
    if text.isascii() and text.isprintable():
        return text
    return _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))


def _decode_ascii(data: bytes, codec: str | None) -> str:
    if b"\x1b" in data and (codec in _SEVEN_BIT or _JIS_ESCAPE.search(data)):
        jis = codec if codec in _SEVEN_BIT else "iso2022_jp_ext"
        return _strictly(data, jis) or data.decode(jis, "replace")
    if codec in ("utf-7", "hz") and codec is not None:
        return _strictly(data, codec) or data.decode("ascii")
    return data.decode("ascii")


def _decode_wide(data: bytes, codec: str) -> str:
    text = data.decode(codec, "replace")
    if data and (b"\x00" not in data) and data.isascii():
        return data.decode("ascii")  # labelled UTF-16, but plain ASCII
    if "\ufffd" in text:
        utf8 = _strictly(data, "utf-8")
        if utf8 is not None and b"\x00" not in data:
            return utf8
    return text


def _strictly(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except (UnicodeError, ValueError):
        return None


def _guess(data: bytes, codec: str | None) -> str:
    """The least bad reading of bytes that their label does not fit."""
    if codec is not None:
        text = data.decode(codec, "replace")
        if text.count("\ufffd") * 20 <= len(_HIGH.findall(data[:_SAMPLE])):
            return text  # a few broken characters in an otherwise fitting text
    utf8 = data.decode("utf-8", "replace")
    if utf8.count("\ufffd") * 5 <= len(_HIGH.findall(data)):
        return utf8
    best = _detected(data)
    if best is not None:
        text = data.decode(best, "replace")
        if "\ufffd" not in text[:_SAMPLE] or codec is None:
            return text
    if codec is not None and codec not in ("utf-8", "cp1252"):
        return data.decode(codec, "replace")
    return data.decode("cp1252", "replace")


def _detected(data: bytes) -> str | None:
    """What a statistical detector makes of a sample; only whitelisted codecs count."""
    sample = data[:_SAMPLE]
    if len(_HIGH.findall(sample)) < 6:
        return None
    # A large import that few mails need.
    from charset_normalizer import from_bytes

    best = from_bytes(sample, steps=3, chunk_size=512, threshold=0.35).best()
    return codec_of(best.encoding) if best is not None else None
