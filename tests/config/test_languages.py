"""Dates and sums of every reply language, written with a lightened locale."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from decimal import Decimal

import pytest
from babel.dates import format_date
from babel.numbers import format_currency

from daemon.languages import REPLY_LANGUAGES, SITE_LANGUAGES, locale

_WHOLE = """
from datetime import date
from decimal import Decimal
from babel.dates import format_date
from babel.numbers import format_currency
for name in {names!r}:
    for month in range(1, 13):
        print(format_date(date(2026, month, month), "long", locale=name))
    for currency in ("EUR", "USD", "GBP", "JPY", "MXN", "XYZ"):
        print(format_currency(Decimal("-1234.5"), currency, locale=name))
"""


def test_a_lightened_locale_writes_as_the_whole_one_does() -> None:
    locales = {
        str(found): found
        for language in REPLY_LANGUAGES
        for site in (None, *SITE_LANGUAGES)
        for found in [locale(language, site)]
    }
    program = [sys.executable, "-c", _WHOLE.format(names=sorted(locales))]
    whole = subprocess.run(program, capture_output=True, encoding="utf-8", check=True, env={"PYTHONIOENCODING": "utf-8"}).stdout
    ours = []
    for _, found in sorted(locales.items()):
        ours += [format_date(date(2026, month, month), "long", locale=found) for month in range(1, 13)]
        ours += [
            format_currency(Decimal("-1234.5"), currency, locale=found)
            for currency in ("EUR", "USD", "GBP", "JPY", "MXN", "XYZ")
        ]
    assert whole.splitlines() == ours


@pytest.mark.parametrize("language", ["pl", "nl"])
def test_a_language_of_an_operators_own_is_opened_too(language: str) -> None:
    assert locale(language).language == language
