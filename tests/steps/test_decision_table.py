"""Every row of the decision table: which policy decides, with which reply, how far by itself, and what staff do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from daemon.languages import REPLY_LANGUAGES
from daemon.steps.policy import decide
from daemon.vocab import Binding, GateVerdict, Kind, Mode, Parcel, Verdict
from tests.steps.cases import context, facts, shipped

LATE = (Parcel("DHL", "JJD000390007881254", date(2026, 11, 2), date(2026, 11, 12)),)
ARRIVED = (Parcel("DHL", "JJD000390007881254", date(2026, 11, 18), date(2026, 11, 21), date(2026, 11, 20)),)
LONG_AGO = (Parcel("DHL", "JJD000390007881254", date(2024, 1, 5), date(2024, 1, 9), date(2024, 1, 8)),)
LOW, HIGH = Decimal("14.50"), Decimal(390)


class Row(NamedTuple):
    row: str
    what: str
    label: str
    order: dict[str, Any] | None
    policy: str
    template: str | None
    mode: str = "ask"
    actions: tuple[str, ...] = ()
    message: Mapping[str, Any] = MappingProxyType({})


OWN: dict[str, Any] = {"marketplace": None, "binding": Binding.OWNER}
NOTICE: dict[str, Any] = {"kind": Kind.SYSTEM, "verdict": Verdict(GateVerdict.IGNORE, "marketplace_notice"), "prediction": None}

ROWS = (
    Row("A1", "address, not shipped, Amazon", "logistics_question/address_change", {"state": "unshipped"}, "address-unshipped-marketplace", "logistics_question/address_unshipped_marketplace", actions=("hold_shipment",)),
    Row("A1", "address, not shipped, own shop", "logistics_question/address_change", {"state": "unshipped", "shop": "own", "fulfilment": "own"}, "address-unshipped-own-shop", "logistics_question/address_unshipped", actions=("hold_shipment", "change_address_in_shop"), message=OWN),
    Row("A1", "address, not shipped, FBA", "logistics_question/address_change", {"state": "unshipped", "fulfilment": "FBA"}, "address-fba", "logistics_question/address_fba"),
    Row("A2", "address, shipped, low value", "logistics_question/address_change", {"value": LOW}, "address-shipped-low", "logistics_question/address_shipped_low", actions=("intercept_parcel", "consider_resend")),
    Row("A3", "address, shipped, high value", "logistics_question/address_change", {"value": HIGH}, "address-shipped", "logistics_question/address_shipped_high", actions=("intercept_parcel",)),
    Row("A3", "address, shipped, value unknown", "logistics_question/address_change", {"value": None}, "address-shipped", "logistics_question/address_shipped_high", actions=("intercept_parcel",)),
    Row("A3", "address, shipped, only the flag says so", "logistics_question/tracking", {"value": HIGH}, "address-shipped", "logistics_question/address_shipped_high", message={"flags": ("address_change",)}),
    Row("C1", "cancel, not shipped, official notice", "other", None, "notice-cancellation-official", None, "human", ("cancel_in_shop",), {**NOTICE, "notice": "cancellation_request"}),
    Row("C1", "cancel, not shipped, official request in the report", "cancellation_request/mistake", {"state": "unshipped", "cancel_requested": True}, "cancel-unshipped-official", "cancellation_request/unshipped_official", actions=("cancel_in_shop",)),
    Row("C1", "cancel, not shipped, free text", "cancellation_request/mistake", {"state": "unshipped"}, "cancel-unshipped-free-text", "cancellation_request/unshipped_request", actions=("hold_shipment",)),
    Row("C1", "cancel, not shipped, own shop", "cancellation_request/mistake", {"state": "unshipped", "shop": "own", "fulfilment": "own"}, "cancel-unshipped-own-shop", "cancellation_request/unshipped_direct", actions=("cancel_in_shop",), message=OWN),
    Row("C1", "cancel, not shipped, FBA", "cancellation_request/mistake", {"state": "unshipped", "fulfilment": "FBA"}, "cancel-unshipped-fba", "cancellation_request/unshipped_fba"),
    Row("C1", "cancel, payment pending", "cancellation_request/mistake", {"state": "pending"}, "cancel-pending-amazon", "cancellation_request/pending"),
    Row("C1", "cancel or else return, not shipped", "cancellation_request/mistake", {"state": "unshipped"}, "cancel-unshipped-free-text", "cancellation_request/unshipped_request", message={"second": "return_request"}),
    Row("C2", "cancel, shipped, FBM", "cancellation_request/too_slow", {}, "cancel-shipped", "cancellation_request/shipped", actions=("intercept_parcel",)),
    Row("C2", "cancel or else return, shipped", "cancellation_request/too_slow", {}, "cancel-shipped", "cancellation_request/shipped", message={"second": "return_request"}),
    Row("C2", "cancel, shipped, FBA", "cancellation_request/too_slow", {"fulfilment": "FBA"}, "cancel-shipped-fba", "cancellation_request/shipped_fba"),
    Row("C3", "cancel, shipped, insists in words", "cancellation_request/mistake", {}, "cancel-shipped-insists", "cancellation_request/shipped_insists", actions=("intercept_parcel", "watch_return"), message={"text": "I told you, I do not want it!"}),
    Row("C3", "cancel, shipped, insists after our answer", "cancellation_request/mistake", {}, "cancel-shipped-insists", "cancellation_request/shipped_insists", message={"templates": ("cancellation_request/shipped",), "earlier": 1}),
    Row("C4", "cancel, delivered, FBA", "cancellation_request/mistake", {"state": "delivered", "fulfilment": "FBA", "parcels": ARRIVED}, "cancel-delivered-fba", "cancellation_request/delivered_fba"),
    Row("C5", "cancel, delivered, FBM", "cancellation_request/mistake", {"state": "delivered", "parcels": ARRIVED}, "cancel-delivered-fbm", "cancellation_request/delivered_fbm", actions=("prepare_return", "decide_remedy")),
    Row("C6", "cancel a part, not shipped", "cancellation_request/partial", {"state": "unshipped"}, "cancel-partial", "cancellation_request/partial", actions=("hold_shipment",)),
    Row("C7", "cancel, shipped, the button is gone", "cancellation_request/mistake", {}, "cancel-shipped-self-service", "cancellation_request/self_service", actions=("intercept_parcel",), message={"text": "The cancel button is not there any more"}),
    Row("L1", "where is it, FBA", "logistics_question/tracking", {"fulfilment": "FBA"}, "logistics-fba", "logistics_question/fba"),
    Row("L1", "not received, FBA, wants money", "logistics_question/not_received", {"fulfilment": "FBA"}, "logistics-fba", "logistics_question/fba", message={"second": "return_request"}),
    Row("L2", "where is it, FBM, Amazon", "logistics_question/tracking", {}, "tracking", "logistics_question/tracking"),
    Row("L2", "where is it, own shop", "logistics_question/tracking", {"shop": "own", "fulfilment": "own"}, "tracking", "logistics_question/tracking", "send", message=OWN),
    Row("L2", "not received, not late, wants money", "logistics_question/not_received", {}, "tracking-refund-wanted", "logistics_question/tracking_refund_wanted", message={"second": "return_request"}),
    Row("L2", "shipped without tracking", "logistics_question/tracking", {"parcels": ()}, "shipped-without-tracking", "logistics_question/shipped_untracked"),
    Row("L2", "not shipped yet", "logistics_question/tracking", {"state": "unshipped"}, "not-shipped-yet", "logistics_question/not_shipped_yet"),
    Row("L2", "customs", "logistics_question/customs", {}, "customs", "logistics_question/customs"),
    Row("L3", "long not received", "logistics_question/not_received", {"parcels": LATE}, "not-received-late", "logistics_question/not_received_late", actions=("open_trace", "decide_remedy")),
    Row("L3", "long not received, resend or refund", "logistics_question/not_received", {"parcels": LATE}, "not-received-late", "logistics_question/not_received_late", message={"second": "return_request"}),
    Row("L3", "delivered but not received", "logistics_question/not_received", {"state": "delivered", "parcels": ARRIVED}, "delivered-not-received", "logistics_question/delivered_not_received", actions=("open_trace", "decide_remedy")),
    Row("R1", "unwanted, low value, delivered", "return_request/unwanted", {"state": "delivered", "parcels": ARRIVED, "value": LOW}, "return-unwanted-low", "return_request/unwanted_low", actions=("prepare_return", "decide_remedy")),
    Row("R1", "unwanted, delivered", "return_request/unwanted", {"state": "delivered", "parcels": ARRIVED}, "return-unwanted", "return_request/unwanted", actions=("prepare_return",)),
    Row("R1", "unwanted, on the way", "return_request/unwanted", {}, "return-on-the-way", "return_request/on_the_way", actions=("watch_return",)),
    Row("R2", "damaged", "return_request/damaged", {"state": "delivered", "parcels": ARRIVED}, "return-damaged", "return_request/damaged", actions=("record_feedback", "decide_remedy")),
    Row("R2", "defective", "return_request/defective", {"state": "delivered", "parcels": ARRIVED}, "return-defective", "return_request/defective", actions=("record_feedback", "decide_remedy")),
    Row("R2", "not as described", "return_request/not_as_described", {"state": "delivered", "parcels": ARRIVED}, "return-not-as-described", "return_request/not_as_described", actions=("record_feedback", "decide_remedy")),
    Row("R2", "complaint about the product", "complaint/product", {"state": "delivered", "parcels": ARRIVED}, "complaint-product", "complaint/product", actions=("record_feedback", "decide_remedy")),
    Row("R2", "arrived late", "complaint/late", {"state": "delivered", "parcels": ARRIVED}, "complaint-late", "complaint/late", actions=("record_feedback",)),
    Row("R2", "a part is missing", "complaint/product", {"state": "delivered", "parcels": ARRIVED}, "complaint-missing-part", "complaint/missing_part", message={"text": "Two screws are missing."}),
    Row("R3", "wrong item or colour", "return_request/wrong_item", {"state": "delivered", "parcels": ARRIVED}, "return-wrong-item", "return_request/wrong_item", actions=("pick_error", "decide_remedy")),
    Row("R3", "late and angry, not arrived", "complaint/late", {"parcels": LATE}, "complaint-late-on-the-way", "logistics_question/not_received_late", actions=("open_trace", "decide_remedy")),
    Row("R4", "unwanted, FBA, within 30 days", "return_request/unwanted", {"state": "delivered", "fulfilment": "FBA", "parcels": ARRIVED}, "return-fba-30-days", "return_request/unwanted_fba"),
    Row("R4", "unwanted, FBA, after the period", "return_request/unwanted", {"state": "delivered", "fulfilment": "FBA", "parcels": LONG_AGO, "purchased_on": date(2024, 1, 4)}, "return-outside-window", "return_request/outside_window"),
    Row("R5", "came back intact", "return_request/unwanted", {"state": "returned", "fulfilment": "FBA", "return_disposition": "sellable"}, "returned-intact", "return_request/received", actions=("relabel",)),
    Row("R6", "came back damaged", "return_request/unwanted", {"state": "returned", "fulfilment": "FBA", "return_disposition": "damaged"}, "returned-damaged", "return_request/received", actions=("dispose", "record_feedback")),
    Row("N1", "unhappy, speaks of a bad review", "complaint/product", {"state": "delivered", "parcels": ARRIVED}, "complaint-bad-review", "complaint/unhappy", actions=("record_feedback", "decide_remedy"), message={"text": "Very bad. I gave it two stars."}),
    Row("N1", "threatens with a review", "complaint/review_threat", {"state": "delivered", "parcels": ARRIVED}, "flag-review-threat", None, "human", ("record_feedback", "decide_remedy"), {"flags": ("review_threat",)}),
    Row("W1", "warranty, order known", "other/warranty", {"state": "delivered", "parcels": ARRIVED}, "warranty-with-invoice", "other/warranty_invoice", actions=("arrange_repair",)),
    Row("W1", "warranty, neither order nor invoice", "other/warranty", None, "warranty-no-invoice", "other/warranty_no_invoice"),
    Row("W2", "warranty, the invoice is attached", "other/warranty", None, "warranty-invoice-at-hand", "other/warranty_invoice_sent", actions=("arrange_repair",), message={"text": "The invoice is attached.", "attachment_types": ("application/pdf",)}),
    Row("W3", "out of warranty: who pays", "other/warranty", {"state": "delivered", "parcels": LONG_AGO, "purchased_on": date(2024, 1, 4)}, "warranty-expired", "other/warranty_expired", actions=("ask_repair_cost",)),
    Row("W4", "out of warranty, the second time", "other/warranty", {"state": "delivered", "parcels": LONG_AGO, "purchased_on": date(2024, 1, 4)}, "warranty-expired-again", None, "human", ("ask_repair_cost",), {"templates": ("other/warranty_expired",), "earlier": 1}),
    Row("Z1", "refused the parcel", "return_request/unwanted", {}, "parcel-refused", "return_request/refused_parcel", actions=("watch_return",), message={"text": "I refused the parcel at the door."}),
    Row("Z1", "a claim was refused", "complaint/service", {"state": "delivered", "parcels": ARRIVED}, "claim-refused", "other/claim_refused", actions=("collect_evidence",), message={"text": "My refund was denied without any reason."}),
    Row("Z1", "an A-to-z claim", "return_request/unwanted", {}, "flag-claim", None, "human", ("collect_evidence",), {"flags": ("claim",)}),
    Row("Z1", "the marketplace's claim notice", "other", None, "notice-claim", None, "human", ("collect_evidence",), {**NOTICE, "notice": "claim"}),
    Row("G1", "angry about the service", "complaint/service", {}, "complaint-service", "complaint/service", actions=("record_feedback",)),
    Row("-", "invoice", "other/invoice", {}, "invoice", "other/invoice", actions=("upload_invoice",)),
    Row("-", "before buying: can it be returned?", "other/presale", None, "presale-returns", "other/presale_returns", message={"text": "If I buy it, can I return it?"}),
    Row("-", "before buying: a question", "other/presale", None, "presale-question", "other/presale_question", actions=("answer_question",), message={"text": "Does it fit a 2019 model?"}),
    Row("-", "thanks", "other/thanks", None, "thanks-relay", None, "none", ("mark_no_response",)),
    Row("-", "already cancelled", "cancellation_request/mistake", {"state": "cancelled"}, "cancel-already-cancelled", "cancellation_request/already_cancelled"),
    Row("-", "refund asked for, paid", "return_request/unwanted", {"state": "refunded", "refunded": Decimal("64.90")}, "refund-done", "return_request/refunded"),
    Row("-", "a stranger asks about an order", "logistics_question/tracking", {"shop": "own", "fulfilment": "own"}, "identity-stranger", "other/identity", actions=("identity_check",), message={"marketplace": None, "binding": Binding.STRANGER}),
)  # fmt: skip

#: Rows of the decision table; G2 (peaks after big sales) is for the holiday return dates of the settings.
TABLE = {
    "A1", "A2", "A3", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "L1", "L2", "L3", "R1", "R2", "R3", "R4", "R5", "R6", "N1", "W1", "W2",
    "W3", "W4", "Z1", "G1",
}  # fmt: skip


def identifier(row: Row) -> str:
    return f"{row.row}: {row.what}"


@pytest.mark.parametrize("row", ROWS, ids=identifier)
def test_row(row: Row) -> None:
    order = None if row.order is None else facts(**row.order)
    decision = decide(shipped().playbook, context(row.label, order=order, **row.message))
    assert (decision.policy, decision.template, decision.mode.value) == (row.policy, row.template, row.mode), decision.reasons
    assert set(row.actions) <= set(decision.actions)
    assert decision.looked_at[-1].why_not is None
    assert all(looked.why_not for looked in decision.looked_at[:-1])
    if row.row != "-":
        assert row.row in shipped().playbook.policy(row.policy).rows


@pytest.mark.parametrize("language", REPLY_LANGUAGES)
@pytest.mark.parametrize("row", ROWS, ids=identifier)
def test_row_in_every_language(row: Row, language: str) -> None:
    """The row is decided alike in every language, so no reply is missing."""
    order = None if row.order is None else facts(**row.order)
    decision = decide(shipped().playbook, context(row.label, order=order, **{**row.message, "language": language}))
    assert (decision.policy, decision.template) == (row.policy, row.template), decision.reasons


def test_every_row_of_the_table_is_tried() -> None:
    assert {r.row for r in ROWS} >= TABLE


def test_every_policy_decides_some_row() -> None:
    """A policy that no row reaches would be one that nobody has tried."""
    tried = {r.policy for r in ROWS} | {
        "notice-return-request", "notice-not-sent", "flag-safety", "flag-person", "flag-state-conflict", "partially-shipped", "thanks",
        "spam-relay", "spam", "returned", "address-person", "received-but-not-shipped", "return-unshipped-fba", "return-unshipped",
        "complaint-late-fba", "a-person-answers",
    }  # fmt: skip
    assert {p.name for p in shipped().playbook.policies} == tried


@pytest.mark.parametrize(
    ("label", "order", "message", "policy"),
    [
        ("other", None, {**NOTICE, "notice": "return_request"}, "notice-return-request"),
        ("other", None, {**NOTICE, "notice": "not_sent"}, "notice-not-sent"),
        ("complaint/product", {}, {"flags": ("safety",)}, "flag-safety"),
        ("complaint/product", {}, {"flags": ("legal",)}, "flag-person"),
        ("complaint/product", {}, {"flags": ("counterfeit",)}, "flag-person"),
        ("other/invoice", {}, {"flags": ("off_platform",)}, "flag-person"),
        ("complaint/product", {}, {"flags": ("chargeback",)}, "flag-claim"),
        ("return_request/unwanted", {}, {"flags": ("state_conflict",)}, "flag-state-conflict"),
        ("cancellation_request/mistake", {"partially_shipped": True}, {}, "partially-shipped"),
        ("other/spam", None, {}, "spam-relay"),
        ("return_request/unwanted", {"state": "delivered"}, {"flags": ("address_change",)}, "address-person"),
        ("return_request/damaged", {"state": "unshipped"}, {}, "received-but-not-shipped"),
        ("return_request/unwanted", {"state": "unknown"}, {}, "a-person-answers"),
    ],
)
def test_goes_to_a_person(label: str, order: dict[str, Any] | None, message: dict[str, Any], policy: str) -> None:
    decision = decide(shipped().playbook, context(label, order=None if order is None else facts(**order), **message))
    assert (decision.policy, decision.mode, decision.template) == (policy, Mode.HUMAN, None)


@pytest.mark.parametrize(
    ("label", "order", "message", "policy", "mode"),
    [
        ("other/thanks", None, {"marketplace": None}, "thanks", Mode.NONE),
        ("other/spam", None, {"marketplace": None}, "spam", Mode.NONE),
        ("return_request/unwanted", {"state": "returned"}, {}, "returned", Mode.ASK),
        ("return_request/unwanted", {"state": "unshipped"}, {}, "return-unshipped", Mode.ASK),
        ("return_request/unwanted", {"state": "unshipped", "fulfilment": "FBA"}, {}, "return-unshipped-fba", Mode.ASK),
        ("complaint/late", {"fulfilment": "FBA"}, {}, "complaint-late-fba", Mode.ASK),
    ],
)
def test_further_situations(label: str, order: dict[str, Any] | None, message: dict[str, Any], policy: str, mode: Mode) -> None:
    decision = decide(shipped().playbook, context(label, order=None if order is None else facts(**order), **message))
    assert (decision.policy, decision.mode) == (policy, mode)
