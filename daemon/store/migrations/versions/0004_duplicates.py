"""An index for the cases that name another one: without it, each row that retention removes costs a look at all the others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_DUPLICATES = sa.text("duplicate_of IS NOT NULL")


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_cases_duplicate_of", "cases", ["duplicate_of"], sqlite_where=_DUPLICATES, postgresql_where=_DUPLICATES)


def downgrade() -> None:
    """There is no way back; restore the backup instead."""
    raise NotImplementedError
