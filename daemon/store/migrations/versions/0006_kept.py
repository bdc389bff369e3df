"""The index of what is neither copied nor forgotten holds what was sent alone: no other move of a delivery has to write it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_KEPT = sa.text("state = 'sent' AND copied_at IS NULL AND mime IS NOT NULL")


def upgrade() -> None:
    """Build the index anew."""
    op.drop_index("ix_outbox_kept", "outbox")
    op.create_index("ix_outbox_kept", "outbox", ["kind", "mailbox"], sqlite_where=_KEPT, postgresql_where=_KEPT)


def downgrade() -> None:
    """There is no way back; restore the backup instead."""
    raise NotImplementedError
