"""The local page: the repertoire, comparisons, and a playground. `monochord serve` opens it on this machine only."""

from __future__ import annotations

from pathlib import Path


def serve(port: int = 8765, runs: str | Path = "runs") -> None:
    """Serve on 127.0.0.1 until interrupted. Raises `ImportError` with the way out when the web extra is missing."""
    try:
        import uvicorn

        from monochord.web.app import create_app
    except ImportError as error:
        raise ImportError(f"the page needs {error.name}: pip install 'monochord[web]'") from None
    print(f"http://127.0.0.1:{port}", flush=True)
    uvicorn.run(create_app(Path(runs)), host="127.0.0.1", port=port, log_level="warning")
