"""The tables of docs/playbook.md are made from the code; ``python -m tests.steps.test_playbook_docs`` writes them anew."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.steps.draft import VALUES
from daemon.steps.guard import overridable, severities
from daemon.steps.policy import FACTS, SETTINGS
from daemon.vocab import Finding, Severity
from tests.steps.cases import shipped
from tests.steps.test_decision_table import ROWS, identifier

DOC = Path(__file__).parents[2] / "docs" / "playbook.md"

RULES = {
    "O1": "links and domains, except https ones of the marketplace itself",
    "O2": "e-mail addresses, also disguised ones",
    "O3": "phone numbers",
    "O4": "any word about reviews, ratings, stars",
    "O5": "asking to leave, change or remove feedback",
    "O6": "vouchers, discounts, gifts, promotion",
    "O7": "other channels, other ways to pay, the own website",
    "O8": "unsubscribing",
    "O9": "emoji, emoticons, HTML, images",
    "O10": "more than one empty line",
    "O11": "attachments of other kinds or types, or over 10 MB",
    "O12": "[Important] in the subject",
    "O13": "thanks and greetings without an answer",
    "O14": "money or a replacement promised or said to be paid, unless the records show it",
    "O15": "placeholders that were not filled in",
    "O16": "another order's id, another recipient, a secret",
    "O17": "another language than the buyer's",
    "O18": "asking for card, bank or login data, or for identity papers",
    "O19": "fault, liability, known defects, medical or legal words",
    "O20": "the same reply again, or too many without a person",
    "O21": "more than 4000 characters",
}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def facts_table() -> str:
    return table(
        ("fact", "kind", "meaning", "values"),
        [(f"`{f.name}`", f.kind, f.help, " ".join(f"`{v}`" for v in f.values)) for f in FACTS],
    )


def settings_table() -> str:
    data = tomllib.loads((shipped().file).read_text("utf-8"))["settings"]

    def shown(name: str) -> str:
        value = data[name]
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    return table(("setting", "meaning", "as shipped"), [(f"`{n}`", text, shown(n)) for n, (_, text) in SETTINGS.items()])


def values_table() -> str:
    return table(("value", "meaning"), [(f"`{name}`", text) for name, text in VALUES.items()])


def guard_table() -> str:
    channels = ("amazon", "ebay", "walmart", "etsy", "shopify", "own")
    rows = []
    for rule, by_channel in severities().items():
        staff = "staff decide" if overridable(Finding(rule, Severity.BLOCK, "")) or rule == "O5" else ""
        rows.append((rule, RULES[rule], *(by_channel.get(c, by_channel["*"]) for c in channels), staff))
    return table(("rule", "what", *channels, ""), rows)


def rows_table() -> str:
    return table(
        ("row", "situation", "policy", "mode", "reply", "test"),
        [
            (r.row, r.what, f"`{r.policy}`", r.mode, f"`{r.template}`" if r.template else "", f"`test_row[{identifier(r)}]`")
            for r in ROWS
        ],
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "facts": facts_table,
    "settings": settings_table,
    "values": values_table,
    "guard": guard_table,
    "rows": rows_table,
}


def section(name: str, text: str) -> re.Match[str]:
    match = re.search(rf"(<!-- {name}\b[^>]*-->\n)(.*?)(<!-- /{name} -->)", text, re.DOTALL)
    assert match, f"docs/playbook.md has no section {name}"
    return match


@pytest.mark.parametrize("name", SECTIONS)
def test_table_is_current(name: str) -> None:
    assert section(name, DOC.read_text("utf-8")).group(2).strip() == SECTIONS[name]().strip()


def test_the_document_names_every_key_and_command() -> None:
    from daemon.steps.policy.loading import _KEYS

    text = DOC.read_text("utf-8")
    for key in _KEYS - {"line", "lines"}:
        assert f"`{key}`" in text, key
    for command in ("check", "coverage", "gallery"):
        assert f"postsale playbook {command}" in text


def test_the_example_policy_and_reply_are_the_shipped_ones() -> None:
    text = DOC.read_text("utf-8")
    assert 'when = "order.on_the_way and order.has_tracking and not order.late"' in text
    assert shipped().playbook.policy("tracking").when in text
    head = shipped().renderer.sources["en/logistics_question/tracking"].split("\n")[:4]
    assert "\n".join(head) in text


def write() -> None:
    text = DOC.read_text("utf-8")
    for name, make in SECTIONS.items():
        match = section(name, text)
        text = text[: match.start(2)] + make() + "\n" + text[match.start(3) :]
    DOC.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
