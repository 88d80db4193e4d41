"""The training loop trains what it should and nothing else, resumes to the same numbers, and stops at a NaN."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from monochord.core.finite import NotFinite
from monochord.core.fit import Callback, Monitor, fit
from monochord.core.objective import Loss, Objective
from monochord.core.storage import StorageError
from monochord.core.update import Gradient
from monochord.core.zeroth_order import ZerothOrder
from monochord.objectives import CrossEntropy, NextToken


class Net(nn.Module):
    """A classifier with a frozen part, norms of both kinds and dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x):
        return self.head(self.body(x))


def tuned_head():
    model = Net().eval()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def batches(n=6, size=8):
    g = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(size, 5, generator=g), "labels": torch.randint(0, 3, (size,), generator=g)} for _ in range(n)
    ]


def loader():
    data = torch.cat([b["x"] for b in batches()]), torch.cat([b["labels"] for b in batches()])
    return DataLoader(TensorDataset(*data), batch_size=8, shuffle=True)


def run(model, data=None, objective=None, **options):
    options = {"steps": 6, "lr": 1e-2, "progress": False, "device": "cpu", **options}
    return fit(model, data if data is not None else batches(), objective or CrossEntropy(), **options)


def states_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_only_what_is_trained_changes_statistics_of_frozen_norms_included():
    model, base = tuned_head(), Net()
    history = run(model, weight_decay=0.5, steps=8)
    assert len(history.losses) == 8 and history.losses[-1] < history.losses[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, base.state_dict()[name]) == name.startswith("body"), name
    assert not model.training and not model.head[1].training


def test_a_norm_that_is_trained_gathers_statistics():
    model = tuned_head()
    run(model, steps=1)
    assert not torch.equal(model.head[1].running_mean, torch.zeros(8))


@pytest.mark.parametrize("data", [batches, loader])
@pytest.mark.parametrize("make", [lambda: Gradient("adamw", 1e-2), lambda: ZerothOrder(1e-3)])
def test_resume_gives_the_numbers_of_an_uninterrupted_run(tmp_path, data, make):
    whole, cut = tuned_head(), tuned_head()
    options = {"schedule": "cosine", "warmup": 2, "accumulate": 2, "steps": 9, "seed": 3}
    expected = run(whole, data(), update=make(), **options)

    class Killed(Callback):
        def on_step(self, run):
            if run.step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cut, data(), update=make(), checkpoint=tmp_path, save_every=2, callbacks=[Killed()], **options)
    assert not cut.training
    torch.manual_seed(999)
    again = tuned_head()
    history = run(again, data(), update=make(), checkpoint=tmp_path, save_every=2, **options)
    assert history.losses == expected.losses
    assert states_equal(again, whole)
    once_more = run(tuned_head(), data(), update=make(), checkpoint=tmp_path, **options)
    assert once_more.losses == expected.losses


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    run(tuned_head(), checkpoint=tmp_path, steps=1)
    with pytest.raises(StorageError, match="is of other trained parameters"):
        run(Net(), checkpoint=tmp_path, steps=2)
    assert len(run(Net(), checkpoint=tmp_path, steps=2, resume=False).losses) == 2


def test_the_callers_randomness_is_left_alone():
    model, data = tuned_head(), loader()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(model, data)
    assert torch.equal(torch.rand(3), expected)


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    first, second, third = (run(tuned_head(), loader(), seed=seed).losses for seed in (1, 1, 2))
    assert first == second != third


def test_accumulation_equals_one_big_batch_with_uneven_labels():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 9)

        def forward(self, input_ids):
            return self.out(self.embed(input_ids))

    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (6, 7), generator=g)
    labels = ids.masked_fill(torch.rand(6, 7, generator=g) < 0.5, -100)
    labels[0], labels[4:] = -100, ids[4:]
    parts = [{"input_ids": ids[i : i + 2], "labels": labels[i : i + 2]} for i in (0, 2, 4)]
    small, big = Tokens(), Tokens()
    options = {"steps": 3, "optimizer": "sgd", "lr": 0.5}
    cut = run(small, parts, NextToken(), accumulate=3, **options)
    one = run(big, [{"input_ids": ids, "labels": labels}], NextToken(), **options)
    assert cut.losses == pytest.approx(one.losses, rel=1e-5)
    torch.testing.assert_close(small.state_dict(), big.state_dict(), atol=1e-6, rtol=1e-5)


def test_the_learning_rate_follows_the_schedule():
    seen = run(tuned_head(), schedule="linear", warmup=2, steps=6).steps
    assert [record["lr_factor"] for record in seen] == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    with pytest.raises(ValueError, match="'constant', 'linear' or 'cosine', got 'step'"):
        run(tuned_head(), schedule="step")


def test_epochs_callbacks_monitors_and_evaluation():
    calls = []

    class Watch(Callback):
        def on_start(self, run):
            calls.append("start")

        def on_step(self, run):
            calls.append(run.step)
            run.stop = run.step == 5

        def on_eval(self, run):
            calls.append(run.history.evals[-1])

        def on_end(self, run):
            calls.append("end")

    monitor = Monitor("training", lambda model: model.training, at=(0, 3))
    history = run(
        tuned_head(), steps=None, epochs=2, accumulate=2, callbacks=[Watch(), monitor], evaluate=lambda m: {"a": 1.0},
        eval_every=4,
    )  # fmt: skip
    assert calls == ["start", 1, 2, 3, {"step": 4, "a": 1.0}, 4, 5, "end"]
    assert history.monitors == {"training": [(0, False), (3, False)]}


def test_nan_stops_before_the_step_and_names_the_module():
    class Breaks(nn.Module):
        def forward(self, x):
            return x / 0 if x.max() > 100 else x

    model = nn.Sequential(nn.Linear(5, 4), nn.Sequential(Breaks(), nn.Identity()), nn.Linear(4, 3))
    data = batches(4)
    data[2]["x"] = data[2]["x"] * 1e6
    before = {}

    class Keep(Callback):
        def on_step(self, run):
            before.update({name: value.clone() for name, value in model.state_dict().items()})

    with pytest.raises(NotFinite, match=r"step 2: the loss is nan, first in the output of '1\.0' \(micro-batch 0\)"):
        run(model, data, callbacks=[Keep()], objective=NanMean())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class NanMean(Objective):
    def loss(self, model, batch, step):
        logits = step.logits(model, batch)
        return Loss((logits - logits).sum() + logits.square().mean())


def test_bf16_precision_computes_in_bfloat16():
    model = nn.Sequential(nn.Linear(5, 3))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run(model, steps=1, precision="bf16")
    assert seen == [torch.bfloat16] and model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"data": []}, "data is empty"),
        ({"data": iter([1])}, "is an iterator"),
        ({"data": [torch.ones(2)]}, "must be a dict of tensors"),
        ({"epochs": 1}, "one of steps and epochs"),
        ({"optimizer": "adamm"}, "no optimizer 'adamm' in torch.optim; there are .*adamw"),
        ({"precision": "fp8"}, "'no' or 'bf16', got 'fp8'"),
        ({"data": [{"x": torch.ones(2, 5)}]}, "CrossEntropy needs 'labels' in the batch, which has x"),
    ],
)
def test_bad_input_is_one_clear_line(options, line):
    with pytest.raises(ValueError, match=line):
        run(tuned_head(), **options)


def test_nothing_to_train_is_one_clear_line():
    with pytest.raises(ValueError, match=r"nothing to train: no parameter has requires_grad"):
        run(tuned_head().requires_grad_(False))


def test_second_streams_are_found_in_the_batch():
    class Both(Objective):
        streams = ("other",)

        def loss(self, model, batch, step):
            return Loss(model(batch["other"]["x"]).mean() + model(batch["x"]).mean())

    assert len(run(tuned_head(), objective=Both(), streams={"other": batches(2)}).losses) == 6
    with pytest.raises(ValueError, match="needs a second stream: pass streams="):
        run(tuned_head(), objective=Both())


def test_two_processes_train_as_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import json, os, sys, torch
        from torch import nn
        from monochord.core.fit import fit
        from monochord.core.update import Gradient
        from monochord.core.zeroth_order import ZerothOrder
        from monochord.objectives import CrossEntropy
        torch.set_num_threads(1)
        out = {}
        for name in ("gradient", "zeroth"):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
            model[0].requires_grad_(False)
            g = torch.Generator().manual_seed(1)
            data = []
            for _ in range(4):
                labels = torch.randint(0, 3, (6,), generator=g)
                labels[: torch.randint(0, 5, (), generator=g)] = -100
                data.append({"input": torch.randn(6, 5, generator=g), "labels": labels})
            update = Gradient("sgd", 0.5) if name == "gradient" else ZerothOrder(0.05)
            processes = int(sys.argv[2])
            history = fit(model, data, CrossEntropy(), steps=3, accumulate=4 // processes, update=update, device="cpu",
                          progress=False)
            out[name] = [model[2].weight.tolist(), history.losses]
        from accelerate import PartialState
        if PartialState().is_main_process:
            with open(sys.argv[1], "w") as file:
                json.dump(out, file)
        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
        os._exit(0)  # torch's own threads may abort a process that ends the usual way on a busy machine
        """)
    )
    found = []
    for n in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", str(script)]
        done = subprocess.run([*command, str(tmp_path / f"{n}.json"), str(n)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads((tmp_path / f"{n}.json").read_text()))
    for name in ("gradient", "zeroth"):
        torch.testing.assert_close(
            torch.tensor(found[0][name][0]), torch.tensor(found[1][name][0]), atol=1e-5, rtol=1e-4
        )
        assert found[0][name][1] == pytest.approx(found[1][name][1], rel=1e-4)
