"""Runs and trials, as stores had them before they were numbered."""

from alembic import op
from sqlalchemy import JSON, Column, DateTime, Integer, String, Text, inspect

revision, down_revision = "0001", None


def upgrade() -> None:
    there = inspect(op.get_bind()).get_table_names()
    if "trials" not in there:
        op.create_table(
            "trials",
            Column("key", String(64), primary_key=True),
            Column("target", String(200), nullable=False),
            Column("label", String(200), nullable=False),
            Column("arguments", JSON, nullable=False),
            Column("code", String(64), nullable=False),
            Column("state", String(8), nullable=False, index=True),
            Column("owner", String(200)),
            Column("result", JSON),
            Column("error", Text),
            Column("attempts", Integer, nullable=False),
            Column("created", DateTime, nullable=False),
            Column("finished", DateTime),
        )
    if "runs" not in there:
        op.create_table(
            "runs",
            Column("key", String(64), primary_key=True),
            Column("kind", String(40), nullable=False),
            Column("settings", JSON, nullable=False),
            Column("summary", JSON),
            Column("created", DateTime, nullable=False),
            Column("finished", DateTime),
        )


def downgrade() -> None:
    op.drop_table("runs")
    op.drop_table("trials")
