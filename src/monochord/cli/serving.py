"""`serve`: the local page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monochord.cli.app import app
from monochord.cli.output import examples


@app.command(epilog=examples("monochord serve", "monochord serve --port 9000 --runs ./experiments"))
def serve(
    port: Annotated[int, typer.Option(min=1024, max=65535)] = 8765,
    runs: Annotated[Path, typer.Option(help="Folder of the comparisons to show")] = Path("runs"),
) -> None:
    """Open the repertoire, comparisons and a playground on this machine."""
    from monochord.web import serve as run

    run(port, runs)
