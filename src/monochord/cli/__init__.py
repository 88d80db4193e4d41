"""The command line, one file a group of commands."""

from monochord.cli import changing, comparing, looking, papers, serving
from monochord.cli.app import app, main

__all__ = ["app", "changing", "comparing", "looking", "main", "papers", "serving"]
