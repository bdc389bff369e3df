"""Deterministic marks, and the language of short and mixed texts."""

from __future__ import annotations

import pytest

from daemon.steps.flags import raise_flags
from daemon.steps.language import detect
from daemon.steps.parse import parse
from daemon.vocab import Flag

PLAIN = parse(b"From: a@b.example\nSubject: x\n\nx")


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("The charger got so hot that it started to smoke.", Flag.SAFETY),
        ("Das Netzteil hat gebrannt!", Flag.SAFETY),
        ("L'appareil a pris feu et mon fils s'est brûlé.", Flag.SAFETY),
        ("La batería se ha hinchado, batería muy hinchada.", Flag.SAFETY),
        ("Mia figlia ha una scottatura.", Flag.SAFETY),
        ("充電中に発火しました。", Flag.SAFETY),
        ("充电器冒烟了", Flag.SAFETY),
        ("Urządzenie zaczęło się palić, dym w całym domu", Flag.SAFETY),
        ("I will contact my lawyer.", Flag.LEGAL),
        ("Ich schalte die Verbraucherzentrale ein.", Flag.LEGAL),
        ("Je vais saisir la DGCCRF.", Flag.LEGAL),
        ("Voy a poner una denuncia.", Flag.LEGAL),
        ("Mi rivolgo al mio avvocato.", Flag.LEGAL),
        ("消費生活センターに相談します。", Flag.LEGAL),
        ("我要打12315投诉", Flag.LEGAL),
        ("I opened an A-to-Z claim.", Flag.CLAIM),
        ("Ich stelle einen A-bis-Z Antrag, A-Z-Garantie!", Flag.CLAIM),
        ("I will do a chargeback.", Flag.CHARGEBACK),
        ("Ich lasse das Geld zurückbuchen.", Flag.CHARGEBACK),
        ("This is a fake, not the original.", Flag.COUNTERFEIT),
        ("Das ist eine Fälschung.", Flag.COUNTERFEIT),
        ("C'est une contrefaçon.", Flag.COUNTERFEIT),
        ("これは偽物です。", Flag.COUNTERFEIT),
        ("Refund me or I leave a 1-star review.", Flag.REVIEW_THREAT),
        ("Sonst gibt es eine schlechte Bewertung.", Flag.REVIEW_THREAT),
        ("不处理就给差评", Flag.REVIEW_THREAT),
        ("Write me on WhatsApp.", Flag.OFF_PLATFORM),
        ("加我微信", Flag.OFF_PLATFORM),
        ("Please change the delivery address.", Flag.ADDRESS_CHANGE),
        ("Bitte die Adresse ändern, wir sind umgezogen.", Flag.ADDRESS_CHANGE),
        ("住所を変更したいです。", Flag.ADDRESS_CHANGE),
    ],
)
def test_flags_are_raised(text: str, flag: Flag) -> None:
    flags, terms = raise_flags(text, "", PLAIN)
    assert flag in flags
    assert any(name == flag.value and term for name, term in terms)


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("I do not want to call a lawyer.", Flag.LEGAL),
        ("Ich will keine schlechte Bewertung abgeben.", Flag.REVIEW_THREAT),
        ("No chargeback please.", Flag.CHARGEBACK),
        ("我不想给差评", Flag.REVIEW_THREAT),
        ("Where is my lamp?", Flag.SAFETY),
        ("The firewood basket is nice.", Flag.SAFETY),
        ("My brand new lamp", Flag.LEGAL),
    ],
)
def test_flags_are_not_raised(text: str, flag: Flag) -> None:
    assert flag not in raise_flags(text, "", PLAIN)[0]


def test_negation_never_hides_danger() -> None:
    assert Flag.SAFETY in raise_flags("There was no fire but a lot of smoke.", "", PLAIN)[0]


def test_pictures() -> None:
    def mail(disposition: str, size: int, extra: str = "") -> bytes:
        return (
            (
                f"From: a@b.example\nContent-Type: multipart/mixed; boundary=z\n\n--z\n\nbroken\n--z\nContent-Type: image/jpeg; name=a.jpg\n"
                f"Content-Disposition: {disposition}\n{extra}\n"
            ).encode()
            + b"x" * size
            + b"\n--z--\n"
        )

    def photo(raw: bytes) -> bool:
        return Flag.PHOTO_ATTACHED in raise_flags("", "", parse(raw))[0]

    assert photo(mail("attachment", 100))
    assert photo(mail("inline", 20_000))
    assert not photo(mail("inline", 100, "Content-ID: <logo>\n"))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("where is it", "en"), ("cancel please", "en"), ("Ordered wrong size. Please send 2t.", "en"), ("refund???", "en"),
        ("wo bleibt das paket", "de"), ("bitte stornieren", "de"), ("Rücksendung", "de"), ("ich brauche die Rechnung fuer Bestellung", "de"),
        ("bonjour où en est ma. commande svp", "fr"), ("j ai rien recu", "fr"), ("remboursement svp", "fr"),
        ("¿dónde está mi pedido?", "es"), ("quiero cancelar", "es"), ("no ha llegado", "es"),
        ("dov'è il mio pacco", "it"), ("Serviva quello con attacco femmina", "it"), ("vorrei restituire", "it"),
        ("onde está a minha encomenda", "pt"), ("ainda não recebi", "pt"), ("waar blijft mijn pakket", "nl"), ("ik wil annuleren", "nl"),
        ("gdzie jest moja paczka", "pl"), ("proszę anulować zamówienie", "pl"), ("var är mitt paket", "sv"), ("pakken er ikke kommet frem endnu", "da"),
        ("missä tilaukseni on", "fi"), ("kde je můj balík", "cs"), ("kargom nerede", "tr"), ("unde este coletul meu", "ro"), ("hol van a csomagom", "hu"),
        ("где мой заказ", "ru"), ("де моя посилка, чи є новини", "uk"), ("まだ届きません", "ja"), ("キャンセルお願いします", "ja"), ("注文取消希望、発送前", "ja"),
        ("我要退款", "zh-Hans"), ("请问什么时候发货", "zh-Hans"), ("請問什麼時候出貨", "zh-Hant"), ("我想退貨", "zh-Hant"), ("배송 언제 되나요", "ko"), ("πού είναι το δέμα μου", "el"),
        ("Order 111-0000001-0000001: 商品还没有收到，请帮我查一下 tracking", "zh-Hans"),
        ("Hallo, my parcel ist noch nicht angekommen, bitte um Hilfe", "de"),
    ],
)  # fmt: skip
def test_language(text: str, language: str) -> None:
    assert detect(text) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "👍👍",
        "111-0000001-0000001",
        "???",
        "https://example.com/where-is-my-order",
        "x",
        "B0LAMP0001",
        "12345 67890",
    ],
)
def test_texts_that_tell_no_language(text: str) -> None:
    assert detect(text) is None
