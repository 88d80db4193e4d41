"""Trials on a Ray cluster of two nodes: the same numbers, failures told, limits kept."""

from pathlib import Path

import pytest
from missing import left_out

from monochord.lab.engine import Trial, run
from monochord.lab.store import Store

HERE = "engine_trials"
FOLDER = str(Path(__file__).parent)


def trial(function, label="t", **arguments):
    return Trial(f"{HERE}:{function}", arguments, label)


@pytest.fixture(scope="module")
def cluster():
    try:
        import ray
        from ray.cluster_utils import Cluster
    except ImportError:
        left_out("Ray is not installed here: `pip install 'monochord[ray]'`")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield f"ray:{made.address}"
    ray.shutdown()
    made.shutdown()


def test_two_nodes_give_the_numbers_of_one_machine(cluster, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    trials = [trial("seeded", f"seed {seed}", seed=seed) for seed in range(4)]
    here = run(trials, Store(tmp_path / "here.sqlite"), engine="inline")
    there = run(trials, Store(tmp_path / "there.sqlite"), engine=cluster)
    assert [r.result for r in there] == [r.result for r in here] and {r.state for r in there} == {"done"}
    others = [trial("fail", message="no luck"), trial("sleep", seconds=60), trial("total")]
    objects = {"numbers": [1, 2], "scaler": abs}
    others[2] = Trial(f"{HERE}:total", {}, "objects", objects=objects)
    failed, late, done = run(others, Store(tmp_path / "there.sqlite"), engine=cluster, timeout=3)
    assert "ValueError: no luck" in failed.error and late.error == "stopped after 3 s, its time limit"
    assert done.result == {"total": 3.0, "scale": 3}
    crashed, hungry = run(
        [trial("crash"), trial("hungry", mib=3000)], Store(tmp_path / "there.sqlite"), engine=cluster, memory=1 << 30
    )
    assert "ended early" in crashed.error and "MemoryError" in hungry.error
