"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

#: 64-bit keys that SQLite still gives out by itself.
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "alarms",
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cleared_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", "subject", name=op.f("pk_alarms")),
    )
    op.create_table(
        "folders",
        sa.Column("mailbox", sa.String(length=40), nullable=False),
        sa.Column("folder", sa.String(length=255), nullable=False),
        sa.Column("uidvalidity", sa.BigInteger(), nullable=False),
        sa.Column("last_uid", sa.BigInteger(), nullable=False),
        sa.Column("baseline_uid", sa.BigInteger(), nullable=False),
        sa.Column("review_uid", sa.BigInteger(), nullable=False),
        sa.Column("last_success_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_error_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_mail_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("mailbox", "folder", name=op.f("pk_folders")),
    )
    op.create_table(
        "orders",
        sa.Column("shop", sa.String(length=20), nullable=False),
        sa.Column("order_id", sa.String(length=60), nullable=False),
        sa.Column("report", sa.String(length=40), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("shop", "order_id", "report", name=op.f("pk_orders")),
    )
    op.create_table(
        "reports",
        sa.Column("path", sa.String(length=1000), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("loaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sites", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_reports")),
    )
    op.create_table(
        "settings",
        sa.Column("key", sa.String(length=60), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_settings")),
    )
    op.create_table(
        "threads",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("mailbox", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_threads")),
    )
    op.create_table(
        "cases",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("mailbox", sa.String(length=40), nullable=False),
        sa.Column("folder", sa.String(length=255), nullable=False),
        sa.Column("uidvalidity", sa.BigInteger(), nullable=False),
        sa.Column("uid", sa.BigInteger(), nullable=False),
        sa.Column("message_id", sa.String(length=300), nullable=True),
        sa.Column("raw_sha256", sa.String(length=64), nullable=False),
        sa.Column("content_key", sa.String(length=64), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("review", sa.Boolean(), nullable=False),
        sa.Column("internal_date", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.String(length=60), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claimed_by", sa.String(length=40), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("owner", sa.String(length=40), nullable=True),
        sa.Column("hold_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("duplicate_of", Id, nullable=True),
        sa.Column("thread_id", Id, nullable=True),
        sa.Column("kind", sa.String(length=10), nullable=True),
        sa.Column("notice", sa.String(length=30), nullable=True),
        sa.Column("marketplace", sa.String(length=20), nullable=True),
        sa.Column("language", sa.String(length=10), nullable=True),
        sa.Column("sender", sa.String(length=320), nullable=True),
        sa.Column("order_id", sa.String(length=60), nullable=True),
        sa.Column("label", sa.String(length=60), nullable=True),
        sa.Column("sublabel", sa.String(length=60), nullable=True),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column("policy", sa.String(length=80), nullable=True),
        sa.Column("template", sa.String(length=200), nullable=True),
        sa.Column("mode", sa.String(length=10), nullable=True),
        sa.Column("revision", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("model_version", sa.String(length=80), nullable=True),
        sa.Column("playbook_version", sa.String(length=80), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["duplicate_of"], ["cases.id"], name=op.f("fk_cases_duplicate_of")),
        sa.ForeignKeyConstraint(["thread_id"], ["threads.id"], name=op.f("fk_cases_thread_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cases")),
        sa.UniqueConstraint("mailbox", "folder", "uidvalidity", "uid", name=op.f("uq_cases_mailbox_folder_uidvalidity_uid")),
    )
    op.create_index("ix_cases_mailbox_content_key", "cases", ["mailbox", "content_key"], unique=False)
    op.create_index("ix_cases_mailbox_message_id", "cases", ["mailbox", "message_id"], unique=False)
    op.create_index("ix_cases_mailbox_order_id", "cases", ["mailbox", "order_id"], unique=False)
    op.create_index("ix_cases_mailbox_sender", "cases", ["mailbox", "sender", "received_at"], unique=False)
    op.create_index("ix_cases_received_at", "cases", ["received_at"], unique=False)
    op.create_index("ix_cases_state_due", "cases", ["state", "due_at"], unique=False)
    op.create_index("ix_cases_thread_id", "cases", ["thread_id"], unique=False)
    op.create_table(
        "thread_keys",
        sa.Column("mailbox", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("thread_id", Id, nullable=False),
        sa.ForeignKeyConstraint(["thread_id"], ["threads.id"], name=op.f("fk_thread_keys_thread_id")),
        sa.PrimaryKeyConstraint("mailbox", "key", name=op.f("pk_thread_keys")),
    )
    op.create_index(op.f("ix_thread_keys_thread_id"), "thread_keys", ["thread_id"], unique=False)
    op.create_table(
        "approvals",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("case_id", Id, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("mime_sha256", sa.String(length=64), nullable=False),
        sa.Column("approver", sa.String(length=40), nullable=False),
        sa.Column("approver_address", sa.String(length=320), nullable=False),
        sa.Column("notice_message_id", sa.String(length=300), nullable=False),
        sa.Column("purpose", sa.String(length=20), nullable=False),
        sa.Column("digest_id", Id, nullable=True),
        sa.Column("digest_line", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_by", sa.String(length=80), nullable=True),
        sa.Column("verdict", sa.String(length=20), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_approvals_case_id")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_approvals")),
    )
    op.create_index("ix_approvals_case", "approvals", ["case_id", "revision"], unique=False)
    op.create_index("ix_approvals_digest_id", "approvals", ["digest_id"], unique=False)
    op.create_index("ix_approvals_expires_at", "approvals", ["expires_at"], unique=False)
    op.create_index("ix_approvals_notice_message_id", "approvals", ["notice_message_id"], unique=False)
    op.create_table(
        "drafts",
        sa.Column("case_id", Id, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("language", sa.String(length=10), nullable=False),
        sa.Column("template", sa.String(length=200), nullable=True),
        sa.Column("policy", sa.String(length=80), nullable=True),
        sa.Column("author", sa.String(length=80), nullable=False),
        sa.Column("recipient", sa.String(length=320), nullable=False),
        sa.Column("message_id", sa.String(length=300), nullable=False),
        sa.Column("mime", sa.LargeBinary(), nullable=False),
        sa.Column("mime_sha256", sa.String(length=64), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=True),
        sa.Column("order_state", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(length=80), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_drafts_case_id")),
        sa.PrimaryKeyConstraint("case_id", "revision", name=op.f("pk_drafts")),
    )
    op.create_index("ix_drafts_message_id", "drafts", ["message_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("case_id", Id, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("from_state", sa.String(length=20), nullable=True),
        sa.Column("to_state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.String(length=60), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_events_case_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_case_id"), "events", ["case_id"], unique=False)
    op.create_table(
        "feedback",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("case_id", Id, nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.String(length=80), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("language", sa.String(length=10), nullable=True),
        sa.Column("thread_id", Id, nullable=True),
        sa.Column("predicted", sa.String(length=120), nullable=True),
        sa.Column("final", sa.String(length=120), nullable=False),
        sa.Column("trained_in", sa.String(length=80), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_feedback_case_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
    )
    op.create_index(op.f("ix_feedback_case_id"), "feedback", ["case_id"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("mailbox", sa.String(length=40), nullable=False),
        sa.Column("case_id", Id, nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("recipient", sa.String(length=320), nullable=False),
        sa.Column("recipient_key", sa.String(length=320), server_default=sa.text("('')"), nullable=False),
        sa.Column("envelope_from", sa.String(length=320), nullable=False),
        sa.Column("message_id", sa.String(length=300), nullable=False),
        sa.Column("dedupe_key", sa.String(length=200), nullable=False),
        sa.Column("mime", sa.LargeBinary(), nullable=True),
        sa.Column("mime_sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed_by", sa.String(length=40), nullable=True),
        sa.Column("smtp_code", sa.Integer(), nullable=True),
        sa.Column("smtp_reply", sa.Text(), nullable=True),
        sa.Column("evidence", sa.String(length=40), nullable=True),
        sa.Column("uncertain_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("transmitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("copied_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("template", sa.String(length=200), nullable=True),
        sa.Column("automatic", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_outbox_case_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("kind", "dedupe_key", name=op.f("uq_outbox_kind_dedupe_key")),
        sa.UniqueConstraint("message_id", name=op.f("uq_outbox_message_id")),
    )
    op.create_index("ix_outbox_case_id", "outbox", ["case_id"], unique=False)
    op.create_index("ix_outbox_mailbox_created_at", "outbox", ["mailbox", "created_at"], unique=False)
    op.create_index("ix_outbox_mailbox_recipient_key", "outbox", ["mailbox", "recipient_key", "created_at"], unique=False)
    op.create_index("ix_outbox_mailbox_transmitted_at", "outbox", ["mailbox", "transmitted_at"], unique=False)
    op.create_index("ix_outbox_state_not_before", "outbox", ["state", "not_before"], unique=False)
    op.create_index(
        "uq_outbox_one_reply_per_case",
        "outbox",
        ["case_id"],
        unique=True,
        sqlite_where=sa.text("kind = 'buyer_reply' AND (state NOT IN ('cancelled', 'failed') OR uncertain_at IS NOT NULL)"),
        postgresql_where=sa.text("kind = 'buyer_reply' AND (state NOT IN ('cancelled', 'failed') OR uncertain_at IS NOT NULL)"),
    )
    op.create_table(
        "raw_mail",
        sa.Column("case_id", Id, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_raw_mail_case_id")),
        sa.PrimaryKeyConstraint("case_id", name=op.f("pk_raw_mail")),
    )
    op.create_table(
        "records",
        sa.Column("case_id", Id, nullable=False),
        sa.Column("reading", sa.JSON(), nullable=True),
        sa.Column("outcome", sa.JSON(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_records_case_id")),
        sa.PrimaryKeyConstraint("case_id", name=op.f("pk_records")),
    )
    op.create_table(
        "attempts",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("delivery_id", Id, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("boot_id", sa.String(length=40), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("phase", sa.String(length=20), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["delivery_id"], ["outbox.id"], name=op.f("fk_attempts_delivery_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
    )
    op.create_index(op.f("ix_attempts_delivery_id"), "attempts", ["delivery_id"], unique=False)


def downgrade() -> None:
    """There is no way back; restore the backup instead."""
    raise NotImplementedError
