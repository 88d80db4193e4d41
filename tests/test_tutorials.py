"""The tutorials' Python runs as written, from top to bottom."""

import re
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parent.parent / "docs/tutorials").glob("*.md"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "tutorial"}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf8"), re.S):
        exec(compile(block, path.name, "exec"), names)
