"""The command line, one file a group of commands."""

from monochord.cli import comparing, looking, papers
from monochord.cli.app import app, main

__all__ = ["app", "comparing", "looking", "main", "papers"]
