"""What Japanese and Chinese readers see at once when it is wrong: forms of address, endings, quotes, words of the other region."""

from __future__ import annotations

import re
from functools import cache

import pytest

from daemon.playbook import open_playbook
from daemon.samples import load_samples, render_samples, sample_values


@cache
def _bodies(language: str) -> tuple[tuple[str, str, str], ...]:
    opened = open_playbook()
    samples = load_samples(opened.templates / "samples.json")
    found = tuple(
        (s.template, s.variant, s.draft.body)
        for s in render_samples(opened.renderer, samples, opened.playbook.settings)
        if s.language == language and s.draft is not None
    )
    assert len(found) > 100, "the samples render too little to prove anything"
    return found


@pytest.mark.parametrize(
    ("language", "named", "nameless", "closing"),
    [
        (
            "ja",
            "三崎 綾乃 様\n\nご連絡いただき、ありがとうございます。Lumen & Oakでございます。\n\n",
            "お客様\n\n",
            "\n\nLumen & Oak\n",
        ),
        ("zh-Hans", "郑雨彤，您好：\n\n", "您好：\n\n", "\n\n祝好！\n\nLumen & Oak 客服\n"),
        ("zh-Hant", "鄭雨彤 您好：\n\n", "您好：\n\n", "\n\n敬祝 順心\n\nLumen & Oak 客服 敬上\n"),
    ],
)
def test_a_reply_greets_and_closes(language: str, named: str, nameless: str, closing: str) -> None:
    for template, variant, body in _bodies(language):
        assert body.startswith(nameless if variant == "amazon, little known" else named), template
        assert body.endswith(closing), template


@pytest.mark.parametrize("language", ["zh-Hans", "zh-Hant"])
def test_the_buyer_is_addressed_with_respect_in_chinese(language: str) -> None:
    assert [(t, v) for t, v, body in _bodies(language) if "你" in body] == []


def test_every_japanese_sentence_ends_politely() -> None:
    polite = r"(?:です|ます|ました|ません|でした|ください|でしょうか|ございません)。?$"
    for template, _, body in _bodies("ja"):
        for line in body.split("\n\n", 2)[2].splitlines():
            if line.startswith("・") or "：" in line[:8] or not line.endswith("。"):
                continue
            for sentence in line.rstrip("。").split("。"):
                assert re.search(polite, re.sub(r"（[^）]*）$", "", sentence)), f"{template}: {sentence}"


@pytest.mark.parametrize(
    ("language", "foreign"),
    [
        ("ja", r"[“”\"]|您|订|訂單"),
        ("zh-Hans", r"[「」\"]|[\u3041-\u30ff]|訊息|出貨|保固|工作天|程式"),
        ("zh-Hant", r"[“”\"]|[\u3041-\u30ff]|消息|發貨|保修|工作日|運單|快遞單|信息|郵箱|質量|在線"),
    ],
)
def test_quotes_and_words_are_the_regions_own(language: str, foreign: str) -> None:
    for template, _, body in _bodies(language):
        wrong = re.search(foreign, body)
        assert wrong is None, f"{template}: {wrong.group() if wrong else ''}"


@pytest.mark.parametrize(("language", "charset"), [("zh-Hans", "gb2312"), ("zh-Hant", "big5")])
def test_no_character_of_the_other_script(language: str, charset: str) -> None:
    for template, _, body in _bodies(language):
        for character in re.findall(r"[\u3400-\u9fff]", body):
            assert character.encode(charset, "ignore"), f"{template}: {character}"


@pytest.mark.parametrize("language", ["ja", "zh-Hans", "zh-Hant"])
def test_no_blank_stands_before_a_full_width_mark_and_none_is_half_width(language: str) -> None:
    for template, variant, body in _bodies(language):
        assert re.search(r" [，。；：、）」”]|[（「“] ", body) is None, f"{template} ({variant})"
        assert re.search(r"[\u3041-\u9fff][,;:?!()]", body) is None, f"{template} ({variant})"


@pytest.mark.parametrize("language", ["zh-Hans", "zh-Hant"])
def test_numbers_stand_apart_from_chinese_words(language: str) -> None:
    numbers = r"(?:026-4471926-8830517|05-15871-40297|109011426348092|#LO2048|JJD000390007881254|01855041208745)"
    for template, variant, body in _bodies(language):
        stuck = re.search(rf"[\u3400-\u9fff]{numbers}|{numbers}[\u3400-\u9fff]", body)
        assert stuck is None, f"{template} ({variant}): {stuck.group() if stuck else ''}"


def test_japanese_says_when_an_order_has_more_than_the_named_item() -> None:
    several = [body for t, v, body in _bodies("ja") if v == "amazon, two parcels" and t == "cancellation_request/shipped"]
    single = [
        body for t, v, body in _bodies("ja") if v == "amazon, shipped by the seller" and t == "cancellation_request/shipped"
    ]
    assert "オーク材」ほか（注文番号：" in several[0]
    assert "オーク材」（注文番号：" in single[0]


@pytest.mark.parametrize("language", ["zh-Hans", "zh-Hant"])
def test_chinese_menus_carry_the_names_of_pages_that_are_not_in_chinese(language: str) -> None:
    opened = open_playbook()
    samples = load_samples(opened.templates / "samples.json")
    expected = {"amazon": "（Request Cancellation）", "ebay": "（Cancel this order）", "walmart": "（Request cancellation）"}
    for variant, name in (("amazon, shipped by the seller", "amazon"), ("ebay", "ebay"), ("walmart", "walmart")):
        values, _ = sample_values(
            samples, opened.playbook.settings, "cancellation_request/unshipped_request", language, variant
        )
        draft = opened.renderer.render("cancellation_request/unshipped_request", language, values, subject="Re: x")
        assert expected[name] in draft.body
