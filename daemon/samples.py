"""Invented orders that show every reply template at work, for the gallery and the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from daemon.errors import ConfigError, NeedsHuman
from daemon.steps.draft import Renderer, ReplyValues, reply_values
from daemon.steps.enrich import facts_from_dict
from daemon.steps.policy import return_until, warranty_until
from daemon.vocab import Draft, OrderFacts


@dataclass(frozen=True, slots=True)
class Sample:
    """One rendering of one template: the draft, or why there is none."""

    template: str
    language: str
    variant: str
    marketplace: str | None
    facts: OrderFacts | None
    draft: Draft | None
    missing: str | None


def load_samples(path: Path) -> dict[str, Any]:
    """The sample orders beside the templates. Raises ConfigError."""
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(str(path), "", "there is no such file", "copy samples.json from the shipped templates") from error
    except ValueError as error:
        raise ConfigError(str(path), "", f"is not valid JSON: {error}", "mend that place") from error
    return data


def sample_facts(samples: Mapping[str, Any], language: str, variant: str) -> OrderFacts:
    """The invented order of a variant, with the item named in that language."""
    own = samples["languages"].get(language, samples["languages"]["en"])
    data = {**samples["facts"], **samples["variants"][variant].get("facts", {})}
    count = data.pop("items", 1)
    data["items"] = [{"title": own["item"], "sku": f"LAMP-{n}"} for n in range(count)]
    return facts_from_dict({"site": own["site"], "currency": own["currency"], **data})


def sample_values(
    samples: Mapping[str, Any], settings: Mapping[str, Any], template: str, language: str, variant: str
) -> tuple[ReplyValues, OrderFacts | None]:
    """What a template gets to see in that variant."""
    own = samples["languages"].get(language, samples["languages"]["en"])
    chosen = samples["variants"][variant]
    facts = None if template in samples["without_order"] else sample_facts(samples, language, variant)
    values = reply_values(
        facts,
        language=language,
        marketplace=chosen["marketplace"],
        buyer_name=chosen.get("buyer_name", own["buyer_name"]),
        shop_name=samples["shop"],
        now=datetime.fromisoformat(samples["now"]),
        answer_days=settings["answer_days"],
        photo_days=settings["photo_days"],
        return_until=return_until(settings, facts) if facts else None,
        warranty_until=warranty_until(settings, facts) if facts else None,
    )
    return values, facts


def render_samples(renderer: Renderer, samples: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Sample]:
    """Every template in every variant that its needs allow; texts that come out the same are given once."""
    for name in sorted(renderer.names):
        language, _, template = name.partition("/")
        seen: set[str] = set()
        for variant, chosen in samples["variants"].items():
            values, facts = sample_values(samples, settings, template, language, variant)
            subject = f"Re: {facts.order_id}" if facts else "Re:"
            try:
                draft = renderer.render(template, language, values, subject=subject)
            except NeedsHuman as error:
                yield Sample(template, language, variant, chosen["marketplace"], facts, None, error.reason)
                continue
            if draft.body not in seen:
                seen.add(draft.body)
                yield Sample(template, language, variant, chosen["marketplace"], facts, draft, None)
