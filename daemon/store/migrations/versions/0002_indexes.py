"""Indexes for what is asked in every round, however much has been sent and asked before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_LIVE = sa.text("used_at IS NULL AND revoked_at IS NULL")
_KEPT = sa.text("copied_at IS NULL AND mime IS NOT NULL")


def upgrade() -> None:
    """Create four indexes."""
    op.create_index("ix_approvals_purpose_created_at", "approvals", ["purpose", "created_at"])
    op.create_index("ix_approvals_live", "approvals", ["case_id"], sqlite_where=_LIVE, postgresql_where=_LIVE)
    op.create_index("ix_outbox_updated_at", "outbox", ["updated_at"])
    op.create_index("ix_outbox_kept", "outbox", ["kind", "state", "mailbox"], sqlite_where=_KEPT, postgresql_where=_KEPT)


def downgrade() -> None:
    """There is no way back; restore the backup instead."""
    raise NotImplementedError
