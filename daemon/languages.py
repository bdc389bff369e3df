"""The languages that replies are written in, and how other spellings of them map.

A reply language is a BCP 47 tag as the template folders use it. Chinese is
written in two scripts, and a reader of one may not read the other well, so
``zh`` alone is resolved by region or by the characters of the text.
"""

from __future__ import annotations

from functools import cache

from babel import Locale, localedata
from babel.core import get_global

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


#: What babel knows of a language, and no date or sum is written with.
_NEVER_WRITTEN = (
    "languages", "scripts", "territories", "variants", "unit_patterns", "compound_unit_patterns", "unit_display_names",
    "time_zones", "meta_zones", "date_fields", "interval_formats",
)  # fmt: skip


def locale(language: str, site: str | None = None) -> Locale:
    """The babel locale whose date and money formats a reader of that language on that site expects."""
    region = _REGIONS.get(site or "", "GB" if language == "en" else "")
    if region in _SPOKEN_IN.get(language, ()):
        return formats(f"{language}_{region}")
    return formats("en_GB" if language == "en" else language)


@cache
def formats(tag: str) -> Locale:
    """The babel locale of a tag, with what dates and sums are written with and without the rest, which is 5 MB for our languages."""
    found = Locale.parse(tag.replace("-", "_"))
    _lighten(str(found))
    return found


def _lighten(name: str) -> None:
    """Forget what is never written, of a locale and of those that it inherits from, the eldest first."""
    if name != "root":
        _lighten(get_global("parent_exceptions").get(name) or name.rpartition("_")[0] or "root")
    data = localedata.load(name)  # babel's own copy
    for table in _NEVER_WRITTEN:
        data.pop(table, None)
