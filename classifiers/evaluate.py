"""How good the labels are, and how much could be answered at a given precision."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from classifiers.dataset import Example
from classifiers.document import Scored

#: The labels that Postsale is made to answer.
ANSWERABLE = ("cancellation_request", "complaint", "logistics_question", "return_request")
PRECISIONS = (0.9, 0.95, 0.98, 0.99)
BINS = 10


class LabelFigures(NamedTuple):
    n: int
    precision: float
    recall: float
    f1: float


class Answered(NamedTuple):
    """What the model would answer by its own thresholds. ``share`` is of all messages that have such a label."""

    n: int
    precision: float
    share: float


class Mistake(NamedTuple):
    ident: str
    label: str
    predicted: str
    confidence: float
    terms: tuple[tuple[str, float], ...]
    text: str


class Evaluation(NamedTuple):
    """The figures of one model on one set of messages."""

    n: int
    accuracy: float
    macro_f1: float
    per_label: dict[str, LabelFigures]
    per_language: dict[str, dict[str, LabelFigures]]
    language_macro_f1: dict[str, float]
    sublabel_accuracy: float | None
    coverage_at_precision: dict[str, float]
    coverage_per_label: dict[str, dict[str, float]]
    answered: Answered
    answered_per_language: dict[str, Answered]
    answered_per_label: dict[str, Answered]
    abstained: float
    ece: float
    reliability: list[tuple[float, float, int]]  # mean confidence, share right, messages
    confusion: dict[str, dict[str, int]]
    unknown_label_auroc: float | None
    mistakes: list[Mistake]

    def summary(self) -> dict[str, Any]:
        """Everything that may be kept: figures, no words of any message."""
        rest = {k: v for k, v in self._asdict().items() if k not in {"mistakes", "reliability"}}
        summary: dict[str, Any] = _plain(rest)
        return summary


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return round(float(value), 4) if isinstance(value, float) else value


def evaluate(examples: Sequence[Example], scored: Sequence[Scored], *, worst: int = 20) -> Evaluation:
    """Compare labels with predictions.

    Messages whose label the model cannot know (a benchmark's out-of-scope ones)
    count only in ``unknown_label_auroc``: how well ``familiar``, when low, tells
    them from the others. ``per_label`` and ``macro_f1`` are of top labels.
    """
    known = set(scored[0].scores) if scored else set()
    inside = [(e, s) for e, s in zip(examples, scored, strict=True) if e.top in known]
    outside = [s.familiar for e, s in zip(examples, scored, strict=True) if e.top not in known]
    truth, predicted = [e.top for e, _ in inside], [s.label for _, s in inside]
    labels = sorted(set(truth) | set(predicted))
    confusion: dict[str, dict[str, int]] = {a: dict.fromkeys(labels, 0) for a in labels}
    for a, b in zip(truth, predicted, strict=True):
        confusion[a][b] += 1
    per_label = figures(truth, predicted)
    by_language: defaultdict[str, list[tuple[Example, Scored]]] = defaultdict(list)
    for e, s in inside:
        by_language[e.document.lang or "unknown"].append((e, s))
    per_language = {
        language: figures([e.top for e, _ in pairs], [s.label for _, s in pairs])
        for language, pairs in sorted(by_language.items())
    }
    right = [(s.confidence, e.top == s.label) for e, s in inside]
    return Evaluation(
        n=len(inside),
        accuracy=sum(r for _, r in right) / len(right) if right else 0.0,
        macro_f1=macro(per_label),
        per_label=per_label,
        per_language=per_language,
        language_macro_f1={language: macro(found) for language, found in per_language.items()},
        sublabel_accuracy=_sublabel_accuracy(inside),
        coverage_at_precision={str(p): coverage(right, p) for p in PRECISIONS},
        coverage_per_label={
            label: {
                str(p): coverage([(s.confidence, e.top == label) for e, s in inside if s.label == label], p) for p in PRECISIONS
            }
            for label in labels
        },
        answered=_answered(inside),
        answered_per_language={language: _answered(pairs) for language, pairs in sorted(by_language.items())},
        answered_per_label={label: _answered(inside, (label,)) for label in labels},
        abstained=sum(s.abstained for _, s in inside) / len(inside) if inside else 0.0,
        ece=expected_calibration_error(right),
        reliability=reliability(right),
        confusion=confusion,
        unknown_label_auroc=auroc([s.familiar for _, s in inside], outside) if outside and inside else None,
        mistakes=[
            Mistake(e.ident, e.label, s.label, s.confidence, s.terms, e.document.text)
            for e, s in sorted(inside, key=lambda pair: -pair[1].confidence)
            if e.top != s.label
        ][:worst],
    )


def figures(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, LabelFigures]:
    """Precision, recall and F1 of every label that occurs."""
    wanted, given = Counter(truth), Counter(predicted)
    hit = Counter(a for a, b in zip(truth, predicted, strict=True) if a == b)
    found = {}
    for label in sorted(set(wanted) | set(given)):
        precision = hit[label] / given[label] if given[label] else 0.0
        recall = hit[label] / wanted[label] if wanted[label] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        found[label] = LabelFigures(wanted[label], precision, recall, f1)
    return found


def macro(per_label: dict[str, LabelFigures]) -> float:
    """Mean F1 of the labels that occur."""
    return sum(f.f1 for f in per_label.values()) / len(per_label) if per_label else 0.0


def coverage(right: Sequence[tuple[float, bool]], precision: float) -> float:
    """The largest share that can be labelled, surest first, while ``precision`` of it is right."""
    best = hits = 0
    ordered = sorted(right, key=lambda pair: -pair[0])
    for n, (_, good) in enumerate(ordered, 1):
        hits += good
        if hits >= precision * n:
            best = n
    return best / len(ordered) if ordered else 0.0


def _answered(pairs: Sequence[tuple[Example, Scored]], labels: Sequence[str] | None = None) -> Answered:
    """Of the four labels where the data has them, of all labels in foreign data."""
    if labels is None:
        present = {e.top for e, _ in pairs}
        labels = [label for label in ANSWERABLE if label in present] or sorted(present)
    given = [(e, s) for e, s in pairs if not s.abstained and s.label in labels]
    wanted = sum(e.top in labels for e, _ in pairs)
    hits = sum(e.top == s.label for e, s in given)
    return Answered(len(given), hits / len(given) if given else 0.0, hits / wanted if wanted else 0.0)


def _sublabel_accuracy(pairs: Sequence[tuple[Example, Scored]]) -> float | None:
    """Share of right sublabels where the label is right; None where the data has no sublabels."""
    checked = [(e.label.partition("/")[2] or None) == s.sublabel for e, s in pairs if e.top == s.label]
    return sum(checked) / len(checked) if checked and any("/" in e.label for e, _ in pairs) else None


def reliability(right: Sequence[tuple[float, bool]]) -> list[tuple[float, float, int]]:
    """Mean confidence, share right and number of messages in ten bands of confidence."""
    bands: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
    for confidence, good in right:
        bands[min(BINS - 1, int(confidence * BINS))].append((confidence, good))
    return [
        (sum(c for c, _ in band) / len(band), sum(g for _, g in band) / len(band), len(band))
        for _, band in sorted(bands.items())
    ]


def expected_calibration_error(right: Sequence[tuple[float, bool]]) -> float:
    """How far confidence is from the share right, on average (ten bands)."""
    return sum(n * abs(c - good) for c, good, n in reliability(right)) / len(right) if right else 0.0


def auroc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """The chance that a message with a known label is more confident than one without."""
    ordered = sorted([(c, 1) for c in inside] + [(c, 0) for c in outside])
    ranks, at = 0.0, 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        ranks += (at + 1 + end) / 2 * sum(kind for _, kind in ordered[at:end])
        at = end
    n = len(inside)
    return (ranks - n * (n + 1) / 2) / (n * len(outside))
