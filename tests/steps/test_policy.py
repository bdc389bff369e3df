"""The fixed rules, the checks at load, and what explain shows."""

from __future__ import annotations

import itertools
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from daemon.errors import ConfigError
from daemon.steps.policy import FACTS, build, decide, facts_of, return_until, value_class, warranty_until
from daemon.vocab import Binding, Flag, GateVerdict, Kind, Mode, OrderState, Parcel, Verdict
from tests.growth import TOO_MUCH, growth
from tests.steps.cases import NOW, context, facts, shipped

SEND_ALL = {
    "settings": {
        "low_value": {"GBP": 20}, "high_value": {"GBP": 90}, "late_after_days": 3, "transit_days": 10, "return_days": 30,
        "warranty_months": 24, "answer_days": 2, "photo_days": 7, "ask_on": [], "human_flags": ["off_platform"],
    },
    "mentions": {"invoice": ["invoice", "发票"]},
    "actions": {"look": {"en": "Look."}},
    "policy": [
        {"name": "all", "template": "a/b", "mode": "send", "needs_order": False},
        {"name": "rest", "mode": "human"},
    ],
}  # fmt: skip
OWN: dict[str, Any] = {"marketplace": None, "binding": Binding.OWNER, "relay": False}


def reckless() -> Any:
    """A playbook that would send everything."""
    return build(SEND_ALL, templates={"en/a/b", "zh-Hant/a/b"})


def changed(**policy: Any) -> dict[str, Any]:
    return {**SEND_ALL, "policy": [{"name": "p", "mode": "human", "line": 7, "lines": {}, **policy}, SEND_ALL["policy"][1]]}


# --------------------------------------------------------------------------- rules no policy can weaken


def test_a_playbook_may_send_where_nothing_speaks_against_it() -> None:
    decision = decide(reckless(), context("other", order=facts(shop="own"), **OWN))
    assert (decision.mode, decision.template) == (Mode.SEND, "a/b")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"verdict": Verdict(GateVerdict.HUMAN, "too_old")}, "too_old"),
        ({"prediction": None}, "no_prediction"),
        ({"flags": ("safety",)}, "flag:safety"),
        ({"flags": ("legal",)}, "flag:legal"),
        ({"flags": ("claim",)}, "flag:claim"),
        ({"flags": ("chargeback",)}, "flag:chargeback"),
        ({"flags": ("counterfeit",)}, "flag:counterfeit"),
        ({"flags": ("review_threat",)}, "flag:review_threat"),
        ({"flags": ("off_platform",)}, "flag:off_platform"),
        ({"order_ids": (("1", "body"), ("2", "body"))}, "several_orders"),
        ({"order_ids": (("1", "wrapper"), ("2", "wrapper"))}, "several_orders"),
        ({"language": "nl"}, "missing_language:nl"),
        ({"language": "zh-Hans"}, "missing_language:zh-Hans"),
        ({"language": None}, "missing_language:unknown"),
        ({"templates": ("a/b",)}, "same_answer_again"),
    ],
)
def test_a_person_answers_whatever_the_playbook_says(message: dict[str, Any], reason: str) -> None:
    decision = decide(reckless(), context("other", order=facts(shop="own"), **{**OWN, **message}))
    assert decision.mode is Mode.HUMAN
    assert decision.template is None
    assert reason in decision.reasons


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"authenticated": False}, "sender_not_proved"),
        ({"second": "complaint"}, None),
        ({"flags": ("address_change",)}, "flag:address_change"),
        ({"flags": ("repeat_contact",)}, "flag:repeat_contact"),
        ({"flags": ("photo_attached",)}, "flag:photo_attached"),
        ({"order_ids": (("1", "wrapper"), ("2", "body"))}, "several_orders"),
    ],
)
def test_never_without_a_person(message: dict[str, Any], reason: str | None) -> None:
    decision = decide(reckless(), context("other", order=facts(shop="own"), **{**OWN, **message}))
    assert decision.mode in (Mode.ASK, Mode.HUMAN)
    assert reason is None or (decision.mode is Mode.ASK and reason in decision.reasons)


def test_every_combination_is_at_least_as_careful_as_its_most_careful_part() -> None:
    care = {Mode.SEND: 0, Mode.ASK: 1, Mode.HUMAN: 2}
    single = [
        {"authenticated": False},
        {"flags": ("safety",)},
        {"flags": ("repeat_contact",)},
        {"language": "nl"},
        {"templates": ("a/b",)},
    ]
    for one, other in itertools.combinations(single, 2):
        if set(one) & set(other):
            continue
        both = decide(reckless(), context("other", **{**OWN, **one, **other})).mode
        assert care[both] >= max(care[decide(reckless(), context("other", **{**OWN, **m})).mode] for m in (one, other))


def test_a_none_policy_cannot_hide_a_safety_flag() -> None:
    playbook = build({**SEND_ALL, "policy": [{"name": "quiet", "mode": "none"}, SEND_ALL["policy"][1]]}, templates={"en/a/b"})
    assert decide(playbook, context("other/thanks", flags=("safety",))).mode is Mode.HUMAN
    assert decide(playbook, context("other/thanks")).mode is Mode.NONE


def test_mail_that_the_gate_ignores_is_not_answered() -> None:
    decision = decide(reckless(), context("other", verdict=Verdict(GateVerdict.IGNORE, "auto_submitted"), kind=Kind.SYSTEM))
    assert (decision.mode, decision.reasons, decision.policy) == (Mode.NONE, ("auto_submitted",), None)


def test_a_notice_policy_never_answers_and_never_calms_the_gate() -> None:
    data = {**SEND_ALL, "policy": [{"name": "n", "on": "notice", "mode": "none"}, *SEND_ALL["policy"]]}
    playbook = build(data, templates={"en/a/b"})
    system = {"kind": Kind.SYSTEM, "notice": "refund"}
    assert decide(playbook, context("other", **system, verdict=Verdict(GateVerdict.HUMAN, "look_alike"))).mode is Mode.HUMAN
    assert decide(playbook, context("other", **system, verdict=Verdict(GateVerdict.IGNORE, "notice"))).mode is Mode.NONE


# --------------------------------------------------------------------------- unknown is never "not shipped"


@pytest.mark.parametrize(
    "order",
    [
        None,
        facts(state="unknown"),
        facts(state="unshipped", stale=True),
        facts(state="unshipped", conflict="cancelled, yet a parcel left"),
    ],
)
@pytest.mark.parametrize("label", ["cancellation_request/mistake", "logistics_question/tracking", "return_request/unwanted"])
def test_an_unknown_state_brings_a_person_and_says_why(label: str, order: Any) -> None:
    decision = decide(shipped().playbook, context(label, order=order))
    assert decision.mode is Mode.HUMAN
    assert decision.reasons
    values = facts_of(shipped().playbook, context(label, order=order))["order"]
    assert not values.not_left
    assert values.state == "unknown"


@pytest.mark.parametrize("binding", [Binding.STRANGER, Binding.UNPROVED])
def test_a_writer_who_is_not_the_orders_learns_nothing(binding: Binding) -> None:
    message = context("logistics_question/tracking", order=facts(), binding=binding)
    values = facts_of(shipped().playbook, message)["order"]
    assert not values.known
    assert not values.has_tracking
    assert values.value_class == "unknown"
    decision = decide(shipped().playbook, message)
    assert decision.mode is Mode.HUMAN
    assert f"writer_{binding.value}" in decision.reasons


def test_the_language_may_come_from_the_site_but_then_a_person_looks() -> None:
    message = context(
        "logistics_question/tracking", order=facts(shop="ebay"), language=None, marketplace="ebay", site="ebay.co.uk"
    )
    decision = decide(shipped().playbook, message)
    assert decision.mode is Mode.ASK
    assert "language_from_site" in decision.reasons


def test_a_second_intent_that_no_policy_answers_brings_a_person() -> None:
    decision = decide(shipped().playbook, context("other/invoice", order=facts(), second="cancellation_request"))
    assert decision.mode is Mode.HUMAN
    why = {looked.policy: looked.why_not for looked in decision.looked_at}
    assert why["invoice"] == "does not answer the second intent cancellation_request"


# --------------------------------------------------------------------------- explain


def test_explain_names_values_that_made_a_condition_false() -> None:
    decision = decide(shipped().playbook, context("cancellation_request/mistake", order=facts()))
    why = {looked.policy: looked.why_not for looked in decision.looked_at}
    assert why["cancel-unshipped-free-text"] == "when is false: order.not_left=False"
    assert why["cancel-unshipped-own-shop"] == "marketplace is amazon"
    assert why["flag-safety"] == "when is false: flags={}"
    assert why["cancel-shipped"] is None


def test_deciding_costs_no_more_than_the_text_is_long_and_looks_at_a_policy_once() -> None:
    playbook = shipped().playbook

    def settle(size: int) -> object:
        return decide(playbook, context("other/presale", order=facts(), text="Where is it? " * (size // 13)))

    assert growth(settle, 2_600) < TOO_MUCH
    looked_at = [each.policy for each in decide(playbook, context("other/presale", order=facts())).looked_at]
    assert len(looked_at) == len(set(looked_at))


# --------------------------------------------------------------------------- dates and values


def test_return_window_counts_from_arrival_and_knows_the_holidays() -> None:
    settings = shipped().playbook.settings
    arrived = facts(parcels=(Parcel(delivered_on=date(2026, 6, 1)),), purchased_on=date(2026, 5, 20))
    assert return_until(settings, arrived) == date(2026, 7, 1)
    gift = facts(parcels=(Parcel(delivered_on=date(2026, 11, 20)),), purchased_on=date(2026, 11, 16))
    assert return_until(settings, gift) == date(2027, 1, 31)
    assert return_until(settings, facts(parcels=())) is None


def test_warranty_survives_short_months() -> None:
    bought = facts(parcels=(Parcel(delivered_on=date(2024, 2, 29)),))
    assert warranty_until(shipped().playbook.settings, bought) == date(2026, 2, 28)


@pytest.mark.parametrize(
    ("value", "currency", "kind"),
    [("25", "EUR", "low"), ("25.01", "EUR", "middle"), ("100", "EUR", "high"), ("3500", "JPY", "low"), ("3500", "EUR", "high"),
     ("5", "SEK", "unknown"), (None, "EUR", "unknown"), ("5", None, "unknown")],
)  # fmt: skip
def test_value_class(value: str | None, currency: str | None, kind: str) -> None:
    assert value_class(shipped().playbook.settings, Decimal(value) if value else None, currency) == kind


def test_late_needs_a_date() -> None:
    playbook = shipped().playbook

    def late(**parcel: Any) -> bool:
        order = facts(parcels=(Parcel("DHL", "1", **parcel),))
        return bool(facts_of(playbook, context("logistics_question", order=order))["order"].late)

    today = NOW.date()
    assert not late()
    assert not late(eta=today - timedelta(days=3))
    assert late(eta=today - timedelta(days=4))
    assert not late(shipped_on=today - timedelta(days=13))
    assert late(shipped_on=today - timedelta(days=14))


# --------------------------------------------------------------------------- checked at load

BROKEN = [
    ({"when": "ordr.state == 'shipped'"}, "ordr.state is no fact; did you mean order.state?"),
    ({"when": "order.stat == 'shipped'"}, "order.stat is no fact; did you mean order.state?"),
    ({"when": "order.state == 'shiped'"}, "order.state is never 'shiped'; did you mean shipped?"),
    ({"when": "order.state in ('shipped', 'gone')"}, "order.state is never 'gone'"),
    ({"when": "'saftey' in flags"}, "flags is never 'saftey'; did you mean safety?"),
    ({"when": "'invioce' in mentions"}, "mentions is never 'invioce'; did you mean invoice?"),
    ({"when": "order.items == 'two'"}, "order.items is a number"),
    ({"when": "settings.low_valeu == 3"}, "settings.low_valeu is not among [settings]"),
    ({"when": "order.state == "}, "when is no expression"),
    ({"when": "order.known order.late"}, "when goes on after its end"),
    ({"when": "range(9)"}, "when may not contain call"),
    ({"when": "''.__class__"}, "when may not contain"),
    ({"when": "order.__class__"}, "order.__class__ is no fact"),
    ({"when": "flags|length"}, "when may not contain filter"),
    ({"when": "order"}, "order is no fact"),
    ({"when": 5}, "when must be a text"),
    ({"mode": "maybe"}, "mode = 'maybe'"),
    ({"mode": "ask"}, "mode ask needs a template"),
    ({"mode": "ask", "template": "a/c"}, "there is no template a/c"),
    ({"on": "robot"}, "on = 'robot'"),
    ({"on": "notice", "mode": "ask", "template": "a/b"}, "mode ask on a notice"),
    ({"actions": ["dance"]}, "dance is not in [actions]"),
    ({"asks": ["dance"]}, "dance is not in [asks]"),
    ({"labels": "x"}, "labels is no key of a policy"),
    ({"name": "rest"}, "the name is used twice"),
    ({"name": "No Name"}, "has no usable name"),
    ({"label": 3}, "label must be a text or a list of texts"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "problem"), BROKEN, ids=[b[1] for b in BROKEN])
def test_a_mistake_is_named_when_the_playbook_is_loaded(policy: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(changed(**policy), templates={"en/a/b"}, file="pb.toml")
    assert problem in str(caught.value)
    assert str(caught.value).startswith("pb.toml: ")
    assert "line 7" in str(caught.value) or problem == "the name is used twice"


def test_settings_are_checked() -> None:
    for change, problem in (
        ({"late_after_days": None}, "settings.late_after_days: must be a whole number"),
        ({"return_days": -1}, "must not be negative"),
        ({"low_value": {"EURO": 3}}, "settings.low_value.EURO"),
        ({"human_flags": ["brave"]}, "brave is no flag"),
        ({"holiday_returns": [{"purchased_from": date(2026, 1, 1)}]}, "a season lacks one of its days"),
    ):
        with pytest.raises(ConfigError) as caught:
            build({**SEND_ALL, "settings": {**SEND_ALL["settings"], **change}}, templates={"en/a/b"})  # type: ignore[dict-item]
        assert problem in str(caught.value)
    lacking = {k: v for k, v in SEND_ALL["settings"].items() if k != "transit_days"}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"settings\.transit_days: is missing"):
        build({**SEND_ALL, "settings": lacking}, templates={"en/a/b"})


def test_the_last_policy_must_catch_everything() -> None:
    with pytest.raises(ConfigError, match="does not catch everything"):
        build({**SEND_ALL, "policy": SEND_ALL["policy"][:1]}, templates={"en/a/b"})


def test_a_condition_that_fails_at_work_brings_a_person() -> None:
    data = {
        **SEND_ALL,
        "policy": [
            {"name": "odd", "mode": "human", "when": "settings.return_days < order.items + settings.mood"},
            *SEND_ALL["policy"],
        ],
    }
    data["settings"] = {**SEND_ALL["settings"], "mood": "good"}  # type: ignore[dict-item]
    decision = decide(build(data, templates={"en/a/b"}), context("other", order=facts(shop="own"), **OWN))
    assert decision.mode is Mode.HUMAN
    assert "policy_error:odd" in decision.reasons


def test_words_of_a_topic_are_whole_words_where_the_script_has_spaces() -> None:
    def topics(text: str) -> Any:
        return facts_of(reckless(), context("other", text=text))["mentions"]

    assert topics("Please send the INVOICE.") == {"invoice"}
    assert topics("invoices") == frozenset()
    assert topics("请开发票给我") == {"invoice"}


def test_every_fact_of_the_schema_exists() -> None:
    values = facts_of(shipped().playbook, context("other", order=facts()))
    for fact in FACTS:
        head, _, tail = fact.name.partition(".")
        value = getattr(values[head], tail) if tail else values[head]
        if fact.kind == "yes/no":
            assert isinstance(value, bool), fact.name
        if fact.values and isinstance(value, str):
            assert value in fact.values, fact.name


def test_flags_and_states_of_the_vocabulary_are_in_the_schema() -> None:
    by_name = {f.name: f for f in FACTS}
    assert set(by_name["flags"].values) == set(Flag)
    assert set(by_name["order.state"].values) == set(OrderState)
