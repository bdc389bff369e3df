"""What models did on days that have ended, and an index for what staff said lately."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table and the index."""
    op.create_table(
        "label_days",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("model_version", sa.String(length=80), nullable=False),
        sa.Column("label", sa.String(length=80), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("abstained", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("day", "model_version", "label", name=op.f("pk_label_days")),
    )
    op.create_index("ix_feedback_at", "feedback", ["at"])


def downgrade() -> None:
    """There is no way back; restore the backup instead."""
    raise NotImplementedError
