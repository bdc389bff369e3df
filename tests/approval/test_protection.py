"""`postsale check` says plainly what a setting does not protect against."""

from __future__ import annotations

from typing import Any

from daemon.steps.approval import protection


def said(*methods: str, **values: Any) -> tuple[str, list[str]]:
    given: dict[str, Any] = {
        "authserv_id": "mx.shop.example",
        "plus_addressing": True,
        "address": "shop@shop.example",
        "approver_addresses": ("anna@staff.example",),
    }
    found = protection(methods, **{**given, **values})
    return " ".join(p.text for p in found), [p.text for p in found if p.warning]


def test_the_usual_setting_warns_of_nothing() -> None:
    text, warnings = said("dmarc")
    assert "mx.shop.example" in text
    assert warnings == []


def test_token_only_is_a_loud_warning() -> None:
    assert any("forging" in w for w in said("token_only")[1])
    assert any("forging" in w for w in said("dmarc", "token_only")[1])


def test_a_missing_authserv_id_is_a_warning() -> None:
    assert any("authserv_id" in w for w in said("dmarc", authserv_id=None)[1])
    assert said("dkim", authserv_id=None)[1] == []


def test_an_approver_who_is_the_mailbox_is_a_warning() -> None:
    assert any("never a decision" in w for w in said("dmarc", approver_addresses=("shop@shop.example",))[1])


def test_one_domain_and_no_plus_addressing_are_explained() -> None:
    text, warnings = said("dmarc", plus_addressing=False, approver_addresses=("anna@shop.example",))
    assert "add auth or dkim" in text
    assert "Message-ID alone" in text
    assert warnings == []
