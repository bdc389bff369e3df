"""Labelled data is read, cleaned and split without fooling anybody."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from classifiers.dataset import Example, data_digest, folds, held_out, prepare, read_jsonl
from classifiers.document import Document
from classifiers.errors import DataRefused

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_jsonl_needs_only_text_and_label(tmp_path: Path) -> None:
    rows = [
        {"text": "where is it", "label": "logistics_question"},
        {
            "text": "kaputt",
            "subject": "Re: x",
            "label": "return_request/damaged",
            "lang": "de",
            "thread": "t1",
            "date": "2026-01-02",
        },
        {"text": "x", "label": "a", "sublabel": "b"},
    ]
    file = tmp_path / "mail.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n", encoding="utf-8")
    found = read_jsonl(file)
    assert found[0].document == Document("where is it")
    assert (found[1].document.lang, found[1].group, found[1].when) == ("de", "t1", datetime(2026, 1, 2, tzinfo=UTC))
    assert found[2].label == "a/b"


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', '{"text": 1, "label": "a"}', '{"text": "x", "label": " "}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "mail.jsonl"
    file.write_text(f'{{"text": "x", "label": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataRefused, match=r"mail\.jsonl:2"):
        read_jsonl(file)


def test_duplicates_are_dropped_and_conflicts_are_listed() -> None:
    mail = [
        Example(Document("Where is order 123?"), "logistics_question", ident="1"),
        Example(Document("where is  order 456?"), "logistics_question", ident="2"),
        Example(Document("It broke."), "return_request", ident="3"),
        Example(Document("it broke."), "complaint", ident="4"),
        Example(Document("  "), "other", ident="5"),
    ]
    prepared = prepare(mail)
    assert [e.ident for e in prepared.examples] == ["1"]
    assert prepared.duplicates == 1
    assert prepared.empty == 1
    assert [(c.idents, c.labels) for c in prepared.conflicts] == [(("3", "4"), ("complaint", "return_request"))]


def test_a_thread_is_never_on_both_sides() -> None:
    mail = [Example(Document(f"text {n}"), "a", group=f"thread {n % 7}") for n in range(100)]
    for sides in (folds(mail), held_out(mail)):
        seen: dict[str | None, set[int]] = {}
        for example, side in zip(mail, sides, strict=True):
            seen.setdefault(example.group, set()).add(side)
        assert all(len(s) == 1 for s in seen.values())


def test_dated_mail_is_split_by_time() -> None:
    mail = [
        Example(Document("word " + "x" * (n % 10) + "yz" * (n // 10)), "a", group=f"t{n}", when=START + timedelta(days=n))
        for n in range(100)
    ]
    sides = held_out(mail)
    assert sum(sides) == 20
    assert all(sides[80:])


def test_the_digest_does_not_depend_on_order_but_on_labels() -> None:
    a, b = Example(Document("one"), "x"), Example(Document("two"), "y")
    assert data_digest([a, b]) == data_digest([b, a])
    assert data_digest([a, b]) != data_digest([a, b._replace(label="x")])
