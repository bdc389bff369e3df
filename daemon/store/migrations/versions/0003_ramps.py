"""Replies without a person per policy group since it went live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "ramps",
        sa.Column("mailbox", sa.String(length=40), nullable=False),
        sa.Column("policy_group", sa.String(length=200), nullable=False),
        sa.Column("live_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("replies", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("mailbox", "policy_group", name=op.f("pk_ramps")),
    )
