"""Whether a new model may replace the live one: both judged on messages that neither has seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from classifiers.dataset import OPERATOR, Example, held_out, starter_evaluation
from classifiers.document import Scored
from classifiers.evaluate import Evaluation, evaluate
from classifiers.inference import Model

#: With fewer messages of the operator's own that could be held out by time, all of them are judged out of fold.
LEAST_BY_TIME = 50
FIXED = "fixed evaluation messages"


class Part(NamedTuple):
    """One set of messages, and how both models did on it. ``live`` is None when there is no live model to compare."""

    name: str
    n: int
    candidate: Evaluation
    live: Evaluation | None


class Comparison(NamedTuple):
    """``worse`` says why the new model may not replace the live one; empty when it may."""

    parts: list[Part]
    worse: list[str]

    def summary(self) -> dict[str, Any]:
        """The figures, for a manifest or a program."""
        return {
            "worse": self.worse,
            "parts": [
                {
                    "name": p.name,
                    "n": p.n,
                    "candidate": {"accuracy": p.candidate.accuracy, "macro_f1": p.candidate.macro_f1},
                    "live": {"accuracy": p.live.accuracy, "macro_f1": p.live.macro_f1} if p.live else None,
                }
                for p in self.parts
            ],
        }


def compare(
    candidate: Model,
    examples: Sequence[Example],
    out_of_fold: Sequence[Scored],
    live: Model | None,
    live_knows: Collection[str],
    retrain: Callable[[list[Example]], Model],
) -> Comparison:
    """Judge the new and the live model on the operator's mail, and on the fixed evaluation messages where labels fit.

    Of the operator's mail only messages count that the live model was not trained
    on (``live_knows`` holds their keys). Where they carry dates, the latest part is
    judged by ``retrain`` of everything before it; otherwise every message by the
    fold that did not see it.
    """
    parts = []
    own = [(e, s) for e, s in zip(examples, out_of_fold, strict=True) if e.origin == OPERATOR]
    fresh = [(e, s) for e, s in own if e.key not in live_knows]
    mine = [e for e, _ in own]
    late = [e for e, out in zip(mine, held_out(mine), strict=True) if out and e.when] if all(e.when for e in mine) else []
    if len(late) >= LEAST_BY_TIME:
        keys = {e.key for e in late}
        earlier = retrain([e for e in mine if e.key not in keys])
        unseen = [e for e in late if e.key not in live_knows]
        if unseen:
            parts.append(_part("your latest mail", unseen, earlier.predict_many([e.document for e in unseen]), live))
    elif fresh:
        parts.append(_part("your mail, out of fold", [e for e, _ in fresh], [s for _, s in fresh], live))
    taught = {e.key for e in mine}
    fixed = [e for e in starter_evaluation() if e.key not in taught]
    if {e.top for e in fixed} <= set(candidate.labels):
        parts.append(_part(FIXED, fixed, candidate.predict_many([e.document for e in fixed]), live))
    return Comparison(parts, _worse(parts))


def _part(name: str, examples: Sequence[Example], scored: Sequence[Scored], live: Model | None) -> Part:
    if live is None or not {e.top for e in examples} & set(live.labels):
        return Part(name, len(examples), evaluate(examples, scored), None)
    theirs = live.predict_many([e.document for e in examples])
    return Part(name, len(examples), evaluate(examples, scored), _all_counted(examples, theirs))


def _all_counted(examples: Sequence[Example], scored: Sequence[Scored]) -> Evaluation:
    """As ``evaluate``, but a label that the live model does not know counts as its mistake."""
    labels = {e.top for e in examples}
    return evaluate(examples, [s._replace(scores={**dict.fromkeys(labels, 0.0), **s.scores}) for s in scored])


def _worse(parts: Sequence[Part]) -> list[str]:
    """Where the new model is worse: on the operator's own mail, or on all messages together.

    So a few messages of one's own cannot buy a loss elsewhere, and many can.
    """
    compared = [(p.name, p.n, p.candidate.accuracy, p.live.accuracy) for p in parts if p.live is not None]
    problems = [
        f"{name}: {mine:.1%} right, the live model {theirs:.1%} ({n} messages)"
        for name, n, mine, theirs in compared
        if name != FIXED and mine < theirs
    ]
    gained = sum(n * (mine - theirs) for _, n, mine, theirs in compared)
    if gained < -0.5:
        problems.append(f"all messages together: {-gained:.0f} fewer right than by the live model")
    return problems
