"""The tables of docs/orders.md are made from the code; ``python -m tests.edges.test_orders_docs`` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.edges.orders.formats import FORMATS, PLAIN_FIELDS
from daemon.steps.enrich import ROW_FIELDS

DOC = Path(__file__).parents[2] / "docs" / "orders.md"


def formats_table() -> str:
    head = "| kind | shop | recognised by the columns | an order that a newer edition leaves out is no longer in that state |\n|---|---|---|---|\n"
    return head + "\n".join(
        f"| {f.kind} | {f.shop} | {', '.join(f'`{n}`' for n in sorted(f.needs))} | {'yes' if f.snapshot else 'no'} |"
        for f in FORMATS
    )


def fields_table() -> str:
    named = [f"| `{name}` | {ROW_FIELDS[name]} |" for name in ROW_FIELDS if name in PLAIN_FIELDS]
    return "\n".join(["| name | meaning |", "|---|---|", *named])


SECTIONS = {"formats": formats_table, "fields": fields_table}


def section(name: str, text: str) -> re.Match[str]:
    match = re.search(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", text, re.DOTALL)
    assert match, f"docs/orders.md has no section {name}"
    return match


@pytest.mark.parametrize("name", SECTIONS)
def test_table_is_current(name: str) -> None:
    assert section(name, DOC.read_text("utf-8")).group(2).strip() == SECTIONS[name]().strip()


def test_every_field_of_a_plain_file_is_documented() -> None:
    assert set(PLAIN_FIELDS) <= set(ROW_FIELDS)


def write() -> None:
    text = DOC.read_text("utf-8")
    for name, make in SECTIONS.items():
        match = section(name, text)
        text = text[: match.start(2)] + make() + "\n" + text[match.start(3) :]
    DOC.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
