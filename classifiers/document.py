"""What goes into a model and what comes out of it.

``NamedTuple`` rather than ``dataclass``: a labelling process has to start in
milliseconds, and the dataclasses module alone costs ten of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Document(NamedTuple):
    """One message: the writer's own words, without quote, signature or wrapper.

    ``lang`` is an ISO 639-1 code where somebody knows it; None leaves it to the
    words themselves.
    """

    text: str
    subject: str = ""
    lang: str | None = None


class Scored(NamedTuple):
    """A model's word on one document.

    ``scores`` holds the calibrated probability of every top label; they add up
    to 1. ``confidence`` is the chance that ``label`` is right. ``terms`` are the
    deciding ones, strongest first, with what each added to the label's score
    relative to the runner-up. ``second`` is a second label where two wishes are
    likely. ``familiar`` is the probability of label and sublabel that remains when
    unknown words speak against it: low for a message unlike all that was learned,
    even where the few words that are known agree. ``reason`` says why the model
    abstained, None when it did not: ``empty``, ``language``, ``vocabulary``,
    ``confidence`` or ``margin``.
    """

    label: str
    sublabel: str | None
    confidence: float
    scores: Mapping[str, float]
    abstained: bool
    terms: tuple[tuple[str, float], ...] = ()
    second: str | None = None
    reason: str | None = None
    familiar: float = 1.0
