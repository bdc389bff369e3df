"""Authentication-Results: only our own server's, only by the grammar of RFC 8601."""

from __future__ import annotations

import pytest

from daemon.steps.authentication import authenticate
from daemon.steps.parse import parse
from daemon.vocab import Authentication, Identity

OURS = Identity(authserv_ids=("mx.lakeside.example",))
EXCHANGE = Identity(authserv_less=True)


def _seen(*results: str, identity: Identity = OURS, sender: str = "grace@post.example") -> Authentication:
    fields = "".join(f"Authentication-Results: {result}\n" for result in results)
    return authenticate(parse(f"{fields}From: {sender}\nSubject: x\n\nhello".encode()), identity)


def test_a_trusted_pass_is_believed() -> None:
    seen = _seen(
        "mx.lakeside.example; dkim=pass header.d=post.example; spf=pass smtp.mailfrom=grace@post.example; dmarc=pass header.from=post.example"
    )
    assert seen == Authentication("pass", dkim_aligned=True, spf_aligned=True, source="mx.lakeside.example")
    assert seen.aligned


@pytest.mark.parametrize(
    "result",
    [
        "evil.example; dmarc=pass header.from=post.example",
        "mx.lakeside.example.evil.example; dmarc=pass header.from=post.example",
        "mx.lakeside.example; dmarc=fail header.from=post.example (dmarc=pass)",
        'mx.lakeside.example; spf=fail smtp.mailfrom="x; dmarc=pass header.from=post.example"@evil.example',
        "mx.lakeside.example; spf=fail (evil; dmarc=pass header.from=post.example) smtp.mailfrom=evil.example",
        "mx.lakeside.example; dmarc=pass header.from=evil.example",
        "mx.lakeside.example; dkim=pass header.d=evil.example",
        "mx.lakeside.example; dkim=fail header.d=post.example",
        "mx.lakeside.example; dkim=pass header.d=example",
        "mx.lakeside.example; x-new=pass header.from=post.example",
        "mx.lakeside.example; none",
        "; dmarc=pass",
        "",
        "dmarc=pass header.from=post.example",
        "=?utf-8?q?mx.lakeside.example=3B_dmarc=3Dpass_header.from=3Dpost.example?=",
    ],
)
def test_what_proves_nothing(result: str) -> None:
    assert not _seen(result).aligned


def test_only_the_topmost_trusted_field_counts() -> None:
    assert not _seen(
        "mx.lakeside.example; dmarc=fail header.from=post.example", "mx.lakeside.example; dmarc=pass header.from=post.example"
    ).aligned
    assert _seen(
        "other.example; dmarc=fail header.from=post.example", "mx.lakeside.example; dmarc=pass header.from=post.example"
    ).aligned


def test_no_configured_id_trusts_nobody() -> None:
    assert _seen("mx.lakeside.example; dmarc=pass header.from=post.example", identity=Identity()) == Authentication()


def test_exchange_online_writes_no_id_and_only_its_first_field_counts() -> None:
    real = "spf=pass (sender IP is 192.0.2.7) smtp.mailfrom=post.example; dkim=pass (signature was verified) header.d=post.example;dmarc=pass action=none header.from=post.example;compauth=pass reason=100"
    assert _seen(real, identity=EXCHANGE).dmarc == "pass"
    assert not _seen("evil.example; none", real, identity=EXCHANGE).aligned
    assert not _seen(real.replace("pass", "fail"), real, identity=EXCHANGE).aligned
    assert not _seen(real).aligned


def test_submission_by_our_own_users() -> None:
    assert _seen("mx.lakeside.example; auth=pass (plain) smtp.auth=grace@post.example").auth_user == "grace@post.example"
    assert _seen("mx.lakeside.example; auth=fail smtp.auth=grace@post.example").auth_user is None


def test_subdomains_align_and_neighbours_do_not() -> None:
    assert _seen("mx.lakeside.example; dkim=pass header.d=post.example", sender="g@mail.post.example").dkim_aligned
    assert _seen("mx.lakeside.example; dkim=pass header.d=mail.post.example").dkim_aligned
    assert not _seen("mx.lakeside.example; dkim=pass header.d=outpost.example").dkim_aligned
    assert not _seen("mx.lakeside.example; dkim=pass header.d=co.uk", sender="g@shop.co.uk").dkim_aligned


def test_two_senders_prove_nothing() -> None:
    mail = parse(
        b"Authentication-Results: mx.lakeside.example; dmarc=pass header.from=post.example\nFrom: grace@post.example\nFrom: boss@corp.example\n\nx"
    )
    assert authenticate(mail, OURS) == Authentication()
