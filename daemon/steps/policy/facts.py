"""The facts of one message, as a condition sees them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from daemon.languages import SITE_LANGUAGES, reply_language
from daemon.steps.policy.schema import Playbook, PolicyContext
from daemon.vocab import (
    Fulfilment,
    OrderFacts,
    OrderState,
)

#: Characters of a message in which the words of [mentions] are looked for.
MENTIONS_WITHIN = 20_000


def reply_language_of(context: PolicyContext) -> str | None:
    """The language a reply has to be in: the buyer's, or the site's when the text does not tell."""
    return language_of(context)[0]


def facts_of(playbook: Playbook, context: PolicyContext) -> dict[str, Any]:
    """The facts of :data:`FACTS` for one message, as a condition sees them."""
    prediction = context.prediction
    folded = " ".join(context.text[:MENTIONS_WITHIN].casefold().replace("’", "'").split())
    return {
        "label": prediction.label if prediction else None,
        "sublabel": prediction.sublabel if prediction else None,
        "second": prediction.second if prediction else None,
        "abstained": prediction.abstained if prediction else True,
        "flags": frozenset(f.value for f in context.flags),
        "mentions": frozenset(topic for topic, words in playbook.mentions.items() if words.mentioned(folded)),
        "language": language_of(context)[0],
        "marketplace": context.marketplace,
        "site": context.site,
        "message": SimpleNamespace(
            notice=context.notice,
            orders=len({o for o, _ in context.order_ids}),
            has_photo=any(t.startswith("image/") for t in context.attachment_types),
            has_document=any(t.startswith("application/") for t in context.attachment_types),
            hour=context.now.hour,
        ),
        "writer": SimpleNamespace(binding=context.binding.value, authenticated=context.authenticated, relay=context.relay),
        "order": _order_facts(playbook.settings, context),
        "history": SimpleNamespace(
            earlier=context.history.earlier_in_thread, templates=frozenset(context.history.templates_used_in_thread)
        ),
        "settings": SimpleNamespace(**playbook.settings),
    }


def return_until(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    """Last day of a return without a reason; None when no arrival can be told.

    Arrival is the delivery day, else the promised one, else the ship day plus
    settings.transit_days. settings.holiday_returns may put it off.
    """
    arrival = _arrival(settings, facts)
    if arrival is None:
        return None
    until = arrival + timedelta(days=settings["return_days"])
    for season in settings.get("holiday_returns", ()):
        if facts.purchased_on is None or not season["purchased_from"] <= facts.purchased_on <= season["purchased_until"]:
            continue
        if season.get("sites") and facts.site not in season["sites"]:
            continue
        until = max(until, season["return_until"])
    return until


def warranty_until(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    """Last day of the guarantee, counted from arrival or, failing that, from the purchase."""
    start = _arrival(settings, facts) or facts.purchased_on
    if start is None:
        return None
    months = start.month - 1 + settings["warranty_months"]
    year, month = start.year + months // 12, months % 12 + 1
    for day in range(start.day, 0, -1):
        try:
            return date(year, month, day)
        except ValueError:  # the month is shorter
            continue
    return None


def value_class(settings: Mapping[str, Any], value: Decimal | None, currency: str | None) -> str:
    """low, middle, high, or unknown when the value or the currency's thresholds are not known."""
    low, high = (settings[k].get(currency or "") for k in ("low_value", "high_value"))
    if value is None or low is None or high is None:
        return "unknown"
    return "low" if value <= low else "high" if value >= high else "middle"


def language_of(context: PolicyContext) -> tuple[str | None, bool]:
    """(reply language, whether it was guessed from the site)."""
    language = reply_language(context.language)
    if language is not None:
        return language, False
    guess = SITE_LANGUAGES.get(context.site or "")
    return guess, guess is not None


def _order_facts(settings: Mapping[str, Any], context: PolicyContext) -> SimpleNamespace:
    facts = context.facts if context.binding.discloses else None
    state = OrderState.UNKNOWN if facts is None or facts.stale or facts.conflict else facts.state
    today = context.now.date()
    empty = OrderFacts("", "", state, Fulfilment.UNKNOWN, context.now, "")
    known = facts or empty
    until, warranty, due = return_until(settings, known), warranty_until(settings, known), _due(settings, known)
    moving = state in (OrderState.SHIPPED, OrderState.IN_TRANSIT)
    return SimpleNamespace(
        known=state is not OrderState.UNKNOWN,
        state=state.value,
        fulfilment=known.fulfilment.value,
        on_the_way=moving,
        not_left=state in (OrderState.PENDING, OrderState.UNSHIPPED) and not known.partially_shipped,
        partially_shipped=known.partially_shipped,
        cancel_requested=bool(known.cancel_requested),
        value_class=value_class(settings, known.value, known.currency),
        has_tracking=any(p.tracking and p.carrier for p in known.parcels),
        has_eta=any(p.eta for p in known.parcels),
        late=moving and due is not None and today > due + timedelta(days=settings["late_after_days"]),
        return_window=_window(today, until),
        warranty=_window(today, warranty),
        return_state=known.return_state,
        disposition=known.return_disposition,
        refunded=bool(known.refunded),
        items=len(known.items),
        parcels=len(known.parcels),
    )


def _window(today: date, until: date | None) -> str:
    return "unknown" if until is None else "open" if today <= until else "closed"


def _due(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    """Day by which the last parcel should have arrived."""
    days = [
        p.eta or (p.shipped_on + timedelta(days=settings["transit_days"]) if p.shipped_on else None)
        for p in facts.parcels
        if not p.delivered_on
    ]
    known = [d for d in days if d is not None]
    return max(known) if known else None


def _arrival(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    delivered = [p.delivered_on for p in facts.parcels if p.delivered_on]
    return max(delivered) if delivered else _due(settings, facts)
