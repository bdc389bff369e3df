"""Every table of the store, as SQLAlchemy Core objects.

The migrations under ``migrations/`` must build the same schema; a test
compares the two. Times are aware UTC; JSON columns hold plain values whose
shape is the dataclass of the same name in :mod:`daemon.vocab`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also where the database keeps none (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the store takes aware datetimes only")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.astimezone(UTC)

    def bind_processor(self, dialect: Dialect) -> Any:
        return _written if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return _read if dialect.name == "sqlite" else super().result_processor(dialect, coltype)


# As SQLAlchemy writes moments on SQLite, in a tenth of the time.


def _written(value: datetime | None) -> str | None:
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError("the store takes aware datetimes only")
    return value.astimezone(UTC).isoformat(" ", "microseconds").removesuffix("+00:00")


def _read(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)


#: 64-bit keys that SQLite still gives out by itself.
Id = BigInteger().with_variant(Integer(), "sqlite")

folders = Table(
    "folders",
    metadata,
    Column("mailbox", String(40), primary_key=True),
    Column("folder", String(255), primary_key=True),
    Column("uidvalidity", BigInteger, nullable=False),
    Column("last_uid", BigInteger, nullable=False),
    Column("baseline_uid", BigInteger, nullable=False),  # mail up to here was there before us
    Column("review_uid", BigInteger, nullable=False),  # after a change of UIDVALIDITY: up to here nothing is answered by itself
    Column("last_success_at", UtcDateTime),
    Column("last_error", Text),
    Column("last_error_at", UtcDateTime),
    Column("last_mail_at", UtcDateTime),
)

threads = Table(
    "threads",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("mailbox", String(40), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

thread_keys = Table(
    "thread_keys",
    metadata,
    Column("mailbox", String(40), primary_key=True),
    Column("key", String(64), primary_key=True),  # digest of correspondent and key: a stranger's never matches
    Column("thread_id", ForeignKey("threads.id"), nullable=False, index=True),
)


def _index_of_known(name: str, *columns: Column[Any], also: Column[Any] | None = None) -> None:
    """An index that leaves out the rows of which the last column is not known (yet), so that they are not written to it."""
    known = text(f"{columns[-1].name} IS NOT NULL")
    Index(name, *columns, *(() if also is None else (also,)), sqlite_where=known, postgresql_where=known)


cases = Table(
    "cases",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    # where the message lies
    Column("mailbox", String(40), nullable=False),
    Column("folder", String(255), nullable=False),
    Column("uidvalidity", BigInteger, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("message_id", String(300)),
    Column("raw_sha256", String(64), nullable=False),
    Column("content_key", String(64)),
    Column("size", BigInteger, nullable=False),
    Column("truncated", Boolean, nullable=False),
    Column("review", Boolean, nullable=False),  # came back under a new UIDVALIDITY: not answered by itself
    Column("internal_date", UtcDateTime),
    Column("received_at", UtcDateTime, nullable=False),
    # where the case stands
    Column("state", String(20), nullable=False),
    Column("reason", String(60)),
    Column("due_at", UtcDateTime),  # when the state wants to be looked at again
    Column("claimed_by", String(40)),
    Column("lease_until", UtcDateTime),
    Column("attempts", Integer, nullable=False, server_default=text("0")),  # counted before each reading
    Column("deadline_at", UtcDateTime),  # the marketplace clock
    Column("owner", String(40)),  # approver who took it
    Column("hold_until", UtcDateTime),
    Column("duplicate_of", ForeignKey("cases.id")),
    Column("thread_id", ForeignKey("threads.id")),
    # what was understood
    Column("kind", String(10)),
    Column("notice", String(30)),
    Column("marketplace", String(20)),
    Column("language", String(10)),
    Column("sender", String(320)),
    Column("order_id", String(60)),
    Column("label", String(60)),
    Column("sublabel", String(60)),
    Column("confidence", Float),
    Column("policy", String(80)),
    Column("template", String(200)),
    Column("mode", String(10)),
    Column("revision", Integer, nullable=False, server_default=text("0")),  # of the newest draft
    Column("model_version", String(80)),
    Column("playbook_version", String(80)),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("mailbox", "folder", "uidvalidity", "uid"),
)
Index("ix_cases_state_due", cases.c.state, cases.c.due_at)
_index_of_known("ix_cases_mailbox_content_key", cases.c.mailbox, cases.c.content_key)
Index("ix_cases_mailbox_message_id", cases.c.mailbox, cases.c.message_id)
_index_of_known("ix_cases_mailbox_order_id", cases.c.mailbox, cases.c.order_id)
_index_of_known("ix_cases_thread_id", cases.c.thread_id)
_index_of_known("ix_cases_mailbox_sender", cases.c.mailbox, cases.c.sender, also=cases.c.received_at)
Index("ix_cases_received_at", cases.c.received_at)
#: Few are copies of another one; whoever removes a row has to know whether it is one that they name.
_index_of_known("ix_cases_duplicate_of", cases.c.duplicate_of)

raw_mail = Table(
    "raw_mail",
    metadata,
    Column("case_id", ForeignKey("cases.id"), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

records = Table(
    "records",
    metadata,
    Column("case_id", ForeignKey("cases.id"), primary_key=True),
    Column("reading", JSON),  # what was understood, as `postsale explain` shows it
    Column("outcome", JSON),  # what was decided and why
    Column("traceback", Text),  # of a broken case
)

events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("case_id", ForeignKey("cases.id"), nullable=False, index=True),
    Column("at", UtcDateTime, nullable=False),
    Column("from_state", String(20)),
    Column("to_state", String(20), nullable=False),
    Column("reason", String(60), nullable=False),
    Column("actor", String(80), nullable=False),  # postsale, an approver's name, or cli:user
    Column("detail", JSON),
)

drafts = Table(
    "drafts",
    metadata,
    Column("case_id", ForeignKey("cases.id"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("state", String(20), nullable=False),
    Column("subject", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("language", String(10), nullable=False),
    Column("template", String(200)),
    Column("policy", String(80)),
    Column("author", String(80), nullable=False),  # postsale or an approver's name
    Column("recipient", String(320), nullable=False),
    Column("message_id", String(300), nullable=False),
    Column("mime", LargeBinary, nullable=False),  # the very bytes that would leave
    Column("mime_sha256", String(64), nullable=False),
    Column("findings", JSON),
    Column("order_state", JSON),  # what the draft took for granted, looked at again before sending
    Column("created_at", UtcDateTime, nullable=False),
    Column("decided_at", UtcDateTime),
    Column("decided_by", String(80)),
)
Index("ix_drafts_message_id", drafts.c.message_id)

approvals = Table(
    "approvals",
    metadata,
    Column("token_hash", String(64), primary_key=True),  # HMAC of the token; the token itself is never stored
    Column("case_id", ForeignKey("cases.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("mime_sha256", String(64), nullable=False),
    Column("approver", String(40), nullable=False),
    Column("approver_address", String(320), nullable=False),
    Column("notice_message_id", String(300), nullable=False),
    Column("purpose", String(20), nullable=False),  # which mail carried it: request, reminder, digest …
    Column("digest_id", Id),  # requests that went out in one digest share it
    Column("digest_line", Integer),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("used_at", UtcDateTime),
    Column("used_by", String(80)),  # mail:<case id> or cli:<user>
    Column("verdict", String(20)),
)
Index("ix_approvals_case", approvals.c.case_id, approvals.c.revision)
Index("ix_approvals_notice_message_id", approvals.c.notice_message_id)
Index("ix_approvals_digest_id", approvals.c.digest_id)
Index("ix_approvals_expires_at", approvals.c.expires_at)
Index("ix_approvals_purpose_created_at", approvals.c.purpose, approvals.c.created_at)
#: Tokens that somebody may still use.
_LIVE = text("used_at IS NULL AND revoked_at IS NULL")
Index("ix_approvals_live", approvals.c.case_id, sqlite_where=_LIVE, postgresql_where=_LIVE)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("kind", String(20), nullable=False),
    Column("mailbox", String(40), nullable=False),
    Column("case_id", ForeignKey("cases.id")),
    Column("revision", Integer),
    Column("recipient", String(320), nullable=False),
    Column("recipient_key", String(320), nullable=False, server_default=text("''")),  # in lower case, for caps
    Column("envelope_from", String(320), nullable=False),
    Column("message_id", String(300), nullable=False, unique=True),
    Column("dedupe_key", String(200), nullable=False),
    Column("mime", LargeBinary),  # gone after retention; the digest stays
    Column("mime_sha256", String(64), nullable=False),
    Column("state", String(20), nullable=False),
    Column("not_before", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("claimed_by", String(40)),
    Column("smtp_code", Integer),
    Column("smtp_reply", Text),
    Column("evidence", String(40)),
    Column("uncertain_at", UtcDateTime),  # when its fate became unknown; evidence is searched for a time from here
    Column("transmitted_at", UtcDateTime),  # when its first body byte was allowed to leave, for caps and rates
    Column("copied_at", UtcDateTime),  # when a copy was seen in, or put into, the Sent folder
    Column("template", String(200)),
    Column("automatic", Boolean, nullable=False, server_default=text("false")),  # left without a person
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("kind", "dedupe_key"),
)
#: A reply that was stopped or refused makes room for another one, unless it may have arrived all the same.
_ONE_REPLY = text("kind = 'buyer_reply' AND (state NOT IN ('cancelled', 'failed') OR uncertain_at IS NOT NULL)")
Index(
    "uq_outbox_one_reply_per_case",
    outbox.c.case_id,
    unique=True,
    sqlite_where=_ONE_REPLY,
    postgresql_where=_ONE_REPLY,
)
Index("ix_outbox_state_not_before", outbox.c.state, outbox.c.not_before)
Index("ix_outbox_mailbox_recipient_key", outbox.c.mailbox, outbox.c.recipient_key, outbox.c.created_at)
Index("ix_outbox_case_id", outbox.c.case_id)
_index_of_known("ix_outbox_mailbox_transmitted_at", outbox.c.mailbox, outbox.c.transmitted_at)
Index("ix_outbox_mailbox_created_at", outbox.c.mailbox, outbox.c.created_at)
Index("ix_outbox_updated_at", outbox.c.updated_at)
#: What was sent and is neither copied to the Sent folder nor forgotten: next to nothing of it.
_KEPT = text("state = 'sent' AND copied_at IS NULL AND mime IS NOT NULL")
Index("ix_outbox_kept", outbox.c.kind, outbox.c.mailbox, sqlite_where=_KEPT, postgresql_where=_KEPT)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("delivery_id", ForeignKey("outbox.id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("boot_id", String(40), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("phase", String(20), nullable=False),  # connect, mail, rcpt, data, body, accepted
    Column("ended_at", UtcDateTime),
    Column("code", Integer),
    Column("reply", Text),
)

#: What models did on days that have ended (UTC). Of a day without mail there is one row without a label.
label_days = Table(
    "label_days",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("model_version", String(80), primary_key=True),
    Column("label", String(80), primary_key=True),
    Column("messages", Integer, nullable=False),
    Column("abstained", Integer, nullable=False),  # left to people
)

ramps = Table(
    "ramps",
    metadata,
    Column("mailbox", String(40), primary_key=True),
    Column("policy_group", String(200), primary_key=True),
    Column("live_since", UtcDateTime, nullable=False),
    Column("days", Integer, nullable=False),  # before ``day``, on which replies left without a person
    Column("day", String(10), nullable=False),  # of UTC, as 2026-11-02
    Column("replies", Integer, nullable=False),  # on that day
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("case_id", ForeignKey("cases.id"), index=True),
    Column("at", UtcDateTime, nullable=False, index=True),
    Column("by", String(80), nullable=False),
    Column("subject", Text),
    Column("text", Text),
    Column("language", String(10)),
    Column("thread_id", Id),
    Column("predicted", String(120)),
    Column("final", String(120), nullable=False),
    Column("trained_in", String(80)),  # the model that last learned from it
)

orders = Table(
    "orders",
    metadata,
    Column("shop", String(20), primary_key=True),
    Column("order_id", String(60), primary_key=True),
    Column("report", String(40), primary_key=True),  # kind of report; every kind keeps its newest edition
    Column("facts", JSON, nullable=False),  # rows: fact rows of that edition; buyer_addr: whose order it is
    Column("as_of", UtcDateTime, nullable=False),
    Column("source", String(200), nullable=False),
)

reports = Table(
    "reports",
    metadata,
    Column("path", String(1000), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("loaded_at", UtcDateTime, nullable=False),
    Column("problem", Text),
    Column("as_of", UtcDateTime),  # when its content was true
    Column("sites", JSON),  # marketplace sites it speaks of
)

settings = Table(
    "settings",
    metadata,
    Column("key", String(60), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", String(80), nullable=False),
)

alarms = Table(
    "alarms",
    metadata,
    Column("name", String(60), primary_key=True),
    Column("subject", String(120), primary_key=True),  # the mailbox or case it is about, "" for the service
    Column("raised_at", UtcDateTime, nullable=False),
    Column("cleared_at", UtcDateTime),
    Column("count", Integer, nullable=False),
    Column("detail", Text),
)
