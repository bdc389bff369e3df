"""Indexes of what a case or a reply has only later leave out those that do not have it yet: to store a mail writes four pages less."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_INDEXES = (
    ("ix_cases_mailbox_content_key", "cases", ["mailbox", "content_key"], "content_key"),
    ("ix_cases_mailbox_order_id", "cases", ["mailbox", "order_id"], "order_id"),
    ("ix_cases_mailbox_sender", "cases", ["mailbox", "sender", "received_at"], "sender"),
    ("ix_cases_thread_id", "cases", ["thread_id"], "thread_id"),
    ("ix_outbox_mailbox_transmitted_at", "outbox", ["mailbox", "transmitted_at"], "transmitted_at"),
)


def upgrade() -> None:
    """Build the indexes anew."""
    for name, table, columns, known in _INDEXES:
        op.drop_index(name, table)
        where = sa.text(f"{known} IS NOT NULL")
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """There is no way back; restore the backup instead."""
    raise NotImplementedError
