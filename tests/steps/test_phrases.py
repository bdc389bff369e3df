"""Expressions found by the plain words that every match contains."""

from __future__ import annotations

import pickle
import re
import tomllib
from importlib.resources import files

import pytest

from daemon.phrases import Phrases, literals
from tests.steps.goldens import mail_cases, reply_cases
from tests.steps.pipeline import read


@pytest.mark.parametrize(
    ("expression", "needed"),
    [
        ("refund", {"refund"}), ("re-?fund", {"fund"}), ("(?:give|send) you", {"give", "send"}), ("a|b", {"a", "b"}), ("colou?r", {"colo"}),
        (r"\d{1,3} ?% off", {"% off"}), (r"(?:ab|\d)c", {"c"}), (r"x(?!yz)[^.]{0,9}", {"x"}), ("(?:ab)?cd*", {"c"}), (r"\bpay\w*", {"pay"}),
        (r"[\]a]", set()), (r"a|\d", set()), ("(?:ab)*", set()), ("ab+c", {"ab"}), ("评价", {"评价"}), ("Refund", {"refund"}),
    ],
)  # fmt: skip
def test_what_every_match_contains(expression: str, needed: set[str]) -> None:
    assert literals(expression) == needed


@pytest.mark.parametrize("key", ["bodies", "subjects", "acknowledgements"])
def test_nothing_is_passed_over_that_would_match(key: str) -> None:
    listed = tomllib.loads((files("daemon.steps") / "data" / "gate.toml").read_text("utf-8"))[key]
    together = re.compile("|".join(f"(?:{expression})" for expression in listed))
    phrases = Phrases(listed)
    mails = [read(case.raw)[0] for file in ("robots.txt", "people.txt", "reports.txt") for case in mail_cases(file)]
    texts = [text.lower() for mail in mails for text in (mail.subject, mail.text)] + [
        case.text.lower() for case in reply_cases()
    ]
    assert [phrases.found_in(text) for text in texts] == [together.search(text) is not None for text in texts]
    assert any(map(phrases.found_in, texts))


def test_a_reading_crosses_to_another_process_unchanged() -> None:
    for case in mail_cases("wrappers.txt"):
        values = read(case.raw)
        assert pickle.loads(pickle.dumps(values)) == values
