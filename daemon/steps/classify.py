"""What a buyer wants, by the trained model."""

from __future__ import annotations

from classifiers.document import Document
from classifiers.inference import Model
from daemon.vocab import Prediction


def classify(model: Model, subject: str, text: str, language: str | None) -> Prediction:
    """The model's word on the writer's own words. ``language`` is an ISO 639-1 code or None."""
    scored = model.predict(Document(text=text, subject=subject, lang=language))
    return Prediction(
        label=scored.label,
        sublabel=scored.sublabel,
        confidence=scored.confidence,
        scores=scored.scores,
        abstained=scored.abstained,
        terms=scored.terms,
        second=scored.second,
        reason=scored.reason,
    )
