"""The store's schema through time, by Alembic.

A new store is made at once and marked as the newest; an older one is brought there when it is opened. To change the
schema: change the tables in `store.py`, then write the next file of `versions/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HEAD = "0001"
FOLDER = Path(__file__).parent


def upgrade(connection: Any) -> None:
    """Bring an older store to `HEAD` within the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
