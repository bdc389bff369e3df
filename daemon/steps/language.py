"""The language of the buyer's own words, or None when they do not say.

Scripts decide first, then everyday words and letters from
``data/language.toml``; only when those leave a doubt a statistical detector
(py3langid, loaded on first need) is asked. Chinese is told apart by its characters
into ``zh-Hans`` and ``zh-Hant``.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from functools import cache
from importlib.resources import files
from operator import itemgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_LOOKED_AT: Final = 3000
_NOISE: Final = re.compile(
    r"https?://\S+|www\.\S+|[^\s@]{0,64}@\S{1,200}|\[[^\]\n]{0,80}\]|[A-Za-z]*\d[A-Za-z0-9-]*", re.IGNORECASE
)
# The same for a text without an @. A word's middle cannot begin what its beginning did not.
_NOISE_WITHOUT_AT: Final = re.compile(
    r"https?://\S+|www\.\S+|\[[^\]\n]{0,80}\]|(?<![A-Za-z])[A-Za-z]*\d[A-Za-z0-9-]*", re.IGNORECASE
)
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_KANA: Final = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_HANGUL: Final = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff]")
_SCRIPTS: Final = (
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("el", re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
)
#: Any character of the other scripts.
_OTHER_SCRIPT: Final = re.compile(
    "["
    + "".join(pattern.pattern.strip("[]") for pattern in (_KANA, _HAN, _HANGUL, *(pattern for _, pattern in _SCRIPTS)))
    + "]"
)
_LATIN: Final = re.compile(r"[A-Za-z\u00c0-\u024f\u1ea0-\u1ef9]")
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_TWO_LATIN: Final = re.compile(rf"{_LATIN.pattern}[^A-Za-z\u00c0-\u024f\u1ea0-\u1ef9]*+{_LATIN.pattern}")
_LATIN_WORD: Final = re.compile(r"[A-Za-z\u00c0-\u024f]+")
# Said in every language; it proves none.
_INTERNATIONAL: Final = frozenset(
    {
        "ok",
        "okay",
        "amazon",
        "ebay",
        "dhl",
        "ups",
        "dpd",
        "gls",
        "fedex",
        "hermes",
        "paypal",
        "iphone",
        "tracking",
        "hello",
        "hi",
        "no",
        "email",
        "samsung",
        "usb",
        "stop",
        "test",
        "sms",
        "a",
        "e",
        "i",
        "o",
        "y",
        "s",
        "d",
        "l",
        "n",
        "m",
        "t",
        "u",
        "c",
    }
)


def detect(text: str) -> str | None:
    """Two-letter code, ``zh-Hans`` or ``zh-Hant``, or None for a text that tells nothing."""
    looked_at = text[:_LOOKED_AT]
    sample = (_NOISE if "@" in looked_at else _NOISE_WITHOUT_AT).sub(" ", looked_at)
    if _OTHER_SCRIPT.search(sample) is None:
        return _latin(sample) if _TWO_LATIN.search(sample) is not None else None
    han = len(_HAN.findall(sample))
    kana = len(_KANA.findall(sample))
    hangul = len(_HANGUL.findall(sample))
    latin = len(_LATIN.findall(sample))
    dense = han + kana + hangul
    # One character of these scripts says about as much as three letters, or as one borrowed word.
    if dense and (dense * 3 >= latin or dense >= len(_LATIN_WORD.findall(sample))):
        return _east_asian(sample, han, kana, hangul)
    counts = [(len(pattern.findall(sample)), code) for code, pattern in _SCRIPTS]
    most, code = max(counts)
    if most > latin:
        return _refined(code, sample) if most >= 2 else None
    return _latin(sample) if latin >= 2 else None


def _east_asian(sample: str, han: int, kana: int, hangul: int) -> str | None:
    if hangul > kana and hangul * 3 >= han:
        return "ko"
    if kana and kana * 12 >= han:
        return "ja"
    traditional = simplified = japanese = 0
    for char in _HAN.findall(sample):
        in_big5, in_gb, in_jis = _encodes(char)
        traditional += in_big5 and not in_gb
        simplified += in_gb and not in_big5
        japanese += in_jis and not in_gb and not in_big5
    if japanese and not simplified and japanese >= traditional:
        return "ja"
    return "zh-Hant" if traditional > simplified else "zh-Hans"


@cache
def _encodes(char: str) -> tuple[bool, bool, bool]:
    """Whether a character stands in the national sets of Taiwan, mainland China and Japan."""
    found = []
    for codec in ("big5", "gb2312", "shift_jis"):
        try:
            char.encode(codec)
            found.append(True)
        except UnicodeEncodeError:
            found.append(False)
    return found[0], found[1], found[2]


def _refined(code: str, sample: str) -> str:
    low = sample.lower()
    if code == "ru":
        if re.search("[іїєґ]", low):
            return "uk"
        if re.search("[јљњћђџ]", low):
            return "sr"
        if "ъ" in low and not re.search("[ыэё]", low) and low.count("ъ") * 60 > len(low):
            return "bg"
    if code == "ar" and re.search("[پچژگ]", low):
        return "fa"
    return code


@cache
def _tables() -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    data = tomllib.loads((files("daemon.steps") / "data" / "language.toml").read_text("utf-8"))
    words: dict[str, dict[str, float]] = {}
    for code, line in data["words"].items():
        for word in set(line.split()):
            words.setdefault(word, {})[code] = 0.0
    for word, codes in words.items():
        weight = (0.4 if word in _INTERNATIONAL else 1.0) / len(codes) ** 0.8
        for code in codes:
            codes[code] = weight
    letters: dict[str, dict[str, float]] = {}
    for code, line in data["letters"].items():
        for letter in set(line):
            letters.setdefault(letter, {})[code] = 0.0
    for codes in letters.values():
        weight = 0.7 / len(codes)
        for code in codes:
            codes[code] = weight
    return words, letters


def _latin(sample: str) -> str | None:
    words, letters = _tables()
    score: dict[str, float] = defaultdict(float)
    tokens = [token.lower().replace("’", "'") for token in _WORD.findall(sample)]
    known = 0
    for token in tokens:
        found = words.get(token)
        if found is None and "'" in token:
            head, _, tail = token.partition("'")
            found = words.get(tail) or words.get(head)
        if found is not None:
            known += 1
            for code, weight in found.items():
                score[code] += weight
    marked: dict[str, float] = defaultdict(float)
    for letter in _BEYOND_ASCII.findall(sample.lower()):
        for code, weight in letters.get(letter, {}).items():
            marked[code] += weight
    for code, weight in marked.items():
        score[code] += min(weight, 0.6 + 0.25 * len(tokens))
    if not tokens:
        return None
    ranked = sorted(score.items(), key=itemgetter(1), reverse=True)[:2]
    best = ranked[0] if ranked else ("", 0.0)
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    share = known / len(tokens)
    sure = best[1] >= 0.9 and best[1] >= 1.35 * second and (share >= 0.25 or best[1] >= 3)
    if sure:
        return best[0]
    guessed, confidence = _statistics(sample)
    # The detector is seldom modest: of two words it says 0.9 easily.
    if confidence >= 0.95 and len(tokens) >= 2 and (best[1] < 0.5 or score[guessed] >= 0.6 * best[1]):
        return guessed
    if best[1] >= 0.5 and best[1] > second * 1.1:
        return best[0]
    return guessed if confidence >= 0.999 and sum(map(len, tokens)) >= 12 else None


@cache
def _detector() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # 9 MB, for texts whose words are not listed

    detector = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)
    # The languages of shops that write Latin letters: the fewer it chooses from, the better it does.
    named = "en de fr es it pt nl pl sv da no fi cs sk tr ro hu vi id hr ca"
    detector.set_languages(named.split())
    return detector


def _statistics(sample: str) -> tuple[str, float]:
    code, confidence = _detector().classify(sample.lower())  # it knows capitals as other letters
    return code, float(confidence)
