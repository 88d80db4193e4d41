"""What trials share is made once a seed and code, and always at the small scale."""

import torch

from monochord.lab import kept as kept_module
from monochord.lab import repertoire
from monochord.lab.kept import kept
from monochord.lab.paper import Paper, Trial


def test_made_once_for_a_seed_and_code(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOCHORD_CACHE", str(tmp_path))
    paper, made = Paper("sparse-dendrites"), []

    def make():
        made.append(1)
        return {"w": torch.full((3,), float(len(made)))}

    assert [kept(paper, Trial(s), "base", make)["w"][0].item() for s in (0, 0, 1)] == [1, 1, 2]
    assert kept(paper, Trial(0), "other", make)["w"][0] == 3
    assert [kept(paper, Trial(0, "smoke"), "base", make)["w"][0].item() for _ in range(2)] == [4, 5]
    monkeypatch.setattr(repertoire, "source_hash", lambda module, uses: "changed")
    assert kept(paper, Trial(0), "base", make)["w"][0] == 6
    files = sorted(file.name for file in tmp_path.rglob("base-0-*"))
    assert files == ["base-0-changed.safetensors"] and kept_module.kept is kept
