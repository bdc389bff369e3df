"""The languages that replies are written in, and how other spellings of them map.

A reply language is a BCP 47 tag as the template folders use it. Chinese is
written in two scripts, and a reader of one may not read the other well, so
``zh`` alone is resolved by region or by the characters of the text.
"""

from __future__ import annotations

from babel import Locale

#: Reply languages that ship, English first.
REPLY_LANGUAGES = ("en", "de", "fr", "es", "it", "ja", "zh-Hans", "zh-Hant")

_TRADITIONAL_REGIONS = {"tw", "hk", "mo", "hant"}

#: Language that buyers of a marketplace site read, when their own words do not tell.
SITE_LANGUAGES = {
    "amazon.com": "en", "amazon.co.uk": "en", "amazon.ca": "en", "amazon.com.au": "en", "amazon.in": "en", "amazon.sg": "en",
    "amazon.de": "de", "amazon.at": "de", "amazon.fr": "fr", "amazon.es": "es", "amazon.com.mx": "es", "amazon.it": "it",
    "amazon.co.jp": "ja", "amazon.cn": "zh-Hans", "ebay.com": "en", "ebay.co.uk": "en", "ebay.com.au": "en", "ebay.de": "de",
    "ebay.fr": "fr", "ebay.es": "es", "ebay.it": "it", "walmart.com": "en",
}  # fmt: skip


def reply_language(code: str | None) -> str | None:
    """The folder name for a language tag, or None for None. Unknown languages come back as their bare code."""
    if not code:
        return None
    parts = code.replace("_", "-").split("-")
    primary = parts[0].lower()
    if primary != "zh":
        return primary
    return "zh-Hant" if any(p.lower() in _TRADITIONAL_REGIONS for p in parts[1:]) else "zh-Hans"


def locale(language: str) -> Locale:
    """The babel locale whose date and money formats a reader of that language expects."""
    return Locale.parse(language, sep="-")
