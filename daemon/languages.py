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


#: Sites whose readers write dates otherwise than the language's common form; English without one is British.
_REGIONS = {
    "amazon.com": "US", "walmart.com": "US", "ebay.com": "US", "amazon.ca": "CA", "amazon.com.au": "AU", "ebay.com.au": "AU",
    "amazon.com.mx": "MX", "amazon.at": "AT", "amazon.in": "IN",
}  # fmt: skip
_SPOKEN_IN = {"en": {"US", "CA", "AU", "IN", "GB"}, "es": {"MX"}, "de": {"AT"}}


def locale(language: str, site: str | None = None) -> Locale:
    """The babel locale whose date and money formats a reader of that language on that site expects."""
    region = _REGIONS.get(site or "", "GB" if language == "en" else "")
    if region in _SPOKEN_IN.get(language, ()):
        return Locale.parse(f"{language}_{region}")
    return Locale.parse("en_GB" if language == "en" else language.replace("-", "_"))
