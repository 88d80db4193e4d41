"""Tuned models inside Hugging Face's `Trainer` and TRL's `SFTTrainer`: they train, save, resume and stay frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from monochord.adapt import BottleneckAdapter, DoRA, FullTuning, LoRA, PromptTokens
from monochord.core.trainer import objective_trainer
from monochord.core.tuner import Tuned, Tuner
from monochord.models.heads import Classifier
from monochord.objectives import KLAnchor, NextToken

Make = Callable[[], Tuned]


def rows(n_classes: int | None = None) -> list[dict[str, Tensor]]:
    """Sixteen texts of eight tokens; labels are the tokens, or a class that the first token tells."""
    ids = torch.randint(5, 60, (16, 8), generator=torch.Generator().manual_seed(0))
    labels = ids if n_classes is None else ids[:, 0] % n_classes
    mask = torch.ones(8, dtype=torch.long)
    return [{"input_ids": i, "attention_mask": mask, "labels": k} for i, k in zip(ids, labels, strict=True)]


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    """Four steps with everything that could move a frozen weight, saved every second."""
    fixed = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True}
    fixed |= {"learning_rate": 0.05, "weight_decay": 0.1, "report_to": "none", "disable_tqdm": True}
    return {"output_dir": str(folder), "dataloader_pin_memory": False, **fixed, **options}


def on(name: str, tuner: Tuner) -> Make:
    return lambda: tuner.attach(zoo.build(name))


def classifier(tuner: Tuner | None = None) -> Tuned:
    return (tuner or LoRA(rank=2) | FullTuning("head.**")).attach(Classifier(zoo.build("bert"), 3))


def frozen_and_tuned(tuned: Tuned) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    own = {id(p) for p in tuned.parameters()}
    state = dict(tuned.model.named_parameters())
    return tuple(  # type: ignore[return-value]
        {n: p.detach().clone() for n, p in state.items() if (id(p) in own) == wanted} for wanted in (False, True)
    )


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[n]) for n, v in a.items())


def train(make: Make, data: Any, folder: Path, resume: bool = False, **options: Any) -> tuple[Tuned, Trainer]:
    tuned = make()
    trainer = Trainer(
        tuned.model, TrainingArguments(**arguments(folder, **options)), train_dataset=data, eval_dataset=data
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    return tuned, trainer


CASES: dict[str, tuple[Make, int | None]] = {
    "lora on llama": (on("llama", LoRA(rank=2)), None),
    "lora and head on a classifier": (classifier, 3),
    "lora on gpt2 with a tied head": (on("gpt2", LoRA(rank=2, sites=("**.o.weight", "embed.weight"))), None),
    "parametrized experts": (on("mixtral", LoRA(rank=1, sites="**.experts.*")), None),
    "three at once": (on("llama", DoRA(rank=2) | BottleneckAdapter(bottleneck=4) | PromptTokens(2)), None),
}


@pytest.mark.parametrize("case", CASES)
def test_trainer_trains_saves_and_resumes(case: str, tmp_path: Path) -> None:
    make, classes = CASES[case]
    before = frozen_and_tuned(make())
    tuned, trainer = train(make, rows(classes), tmp_path)
    frozen, trained = frozen_and_tuned(tuned)
    assert same(frozen, before[0])
    assert not any(torch.equal(v, before[1][n]) for n, v in trained.items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    again, _ = train(make, rows(classes), tmp_path, resume=True)
    assert same(frozen_and_tuned(again)[1], trained) and same(frozen_and_tuned(again)[0], frozen)
    tuned.detach()
    assert same(dict(tuned.model.named_parameters()), dict(make().detach().named_parameters()))


def test_trainer_learns_what_a_hand_written_loop_learns(tmp_path: Path) -> None:
    data = rows()[:4]  # one batch, whatever its order
    tuned, _ = train(on("llama", LoRA(rank=2)), data, tmp_path, lr_scheduler_type="constant", max_grad_norm=0.0)
    other = on("llama", LoRA(rank=2))()
    other.model.train()
    optimizer = torch.optim.AdamW(list(other.parameters()), lr=0.05, weight_decay=0.1)
    batch = torch.utils.data.default_collate(data)
    for _ in range(4):
        optimizer.zero_grad()
        other.model(**batch).loss.backward()
        optimizer.step()
    for found, wanted in zip(tuned.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, tmp_path: Path) -> None:
    make = on("llama", LoRA(rank=2, sites=("embed.weight", "blocks.**.weight")))
    plain, _ = train(make, rows(), tmp_path / "plain", save_strategy="no")
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    checkpointed, _ = train(make, rows(), tmp_path / "checkpointed", save_strategy="no", **options)
    assert checkpointed.model.is_gradient_checkpointing
    for found, wanted in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["lora on llama", "lora and head on a classifier"])
def test_the_best_model_is_brought_back(case: str, tmp_path: Path) -> None:
    make, classes = CASES[case]
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}
    tuned, trainer = train(make, rows(classes), tmp_path, metric_for_best_model="eval_loss", **options)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"  # the higher loss: not where training ended
    stored = load_file(best / "model.safetensors")
    for name, value in frozen_and_tuned(tuned)[1].items():
        assert torch.equal(value, stored[name]), name


def test_a_checkpoint_of_the_trainer_is_loaded_by_hand(tmp_path: Path) -> None:
    make = on("llama", LoRA(rank=2))
    tuned, _ = train(make, rows(), tmp_path)
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    other = make()
    missing, unexpected = other.model.load_state_dict(stored, strict=False)
    assert not missing and not unexpected
    assert torch.equal(zoo.run(other.model, zoo.batch("llama")), zoo.run(tuned.model.eval(), zoo.batch("llama")))
    tuned.save(tmp_path / "tuner")
    with Tuned.load(zoo.build("llama"), tmp_path / "tuner") as loaded:
        assert same(loaded.state(), tuned.state())


# ---------------------------------------------------------------- TRL


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<end>", "a", "b", "c", "d"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def sft(folder: Path, trainer: Any = SFTTrainer, **options: Any) -> tuple[Tuned, Any]:
    tuned = options.pop("tuned", None) or LoRA(rank=2).attach(zoo.build("llama"))
    config = SFTConfig(**arguments(folder, max_length=12), bf16=False)
    data = Dataset.from_dict({"prompt": ["a b ", "b c "] * 8, "completion": ["c d", "d a"] * 8})
    given = {"args": config, "train_dataset": data, "processing_class": tokenizer(), **options}
    return tuned, trainer(model=tuned.model, **given)


def test_sft_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    tuned, trainer = sft(tmp_path)
    before = frozen_and_tuned(tuned)
    assert trainer.args.gradient_checkpointing  # TRL's default
    trainer.train()
    frozen, trained = frozen_and_tuned(tuned)
    assert same(frozen, before[0]) and not any(torch.equal(v, before[1][n]) for n, v in trained.items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    again, trainer = sft(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(frozen_and_tuned(again)[1], trained) and same(frozen_and_tuned(again)[0], frozen)


# ---------------------------------------------------------------- our objectives in their trainers


def anchored(tuned: Tuned, weight: float) -> Any:
    return NextToken() + weight * KLAnchor(tuned)


def drift(tuned: Tuned) -> float:
    """How far the tuned model is from its base, in nats."""
    batch = {n: torch.stack([r[n] for r in rows()]) for n in ("input_ids", "attention_mask")}
    with torch.no_grad(), tuned.disabled():
        base = tuned.model.eval()(**batch).logits.log_softmax(-1)
    with torch.no_grad():
        new = tuned.model(**batch).logits.log_softmax(-1)
    return float(nn.functional.kl_div(new, base, log_target=True, reduction="none").sum(-1).mean())


def test_objective_with_the_untuned_model_as_reference_in_trainer(tmp_path: Path) -> None:
    drifts = []
    for weight in (0.0, 10.0):
        tuned = on("llama", LoRA(rank=2))()
        before, _ = frozen_and_tuned(tuned)
        args = TrainingArguments(**arguments(tmp_path / str(weight)))
        trainer = objective_trainer()(
            model=tuned.model, args=args, train_dataset=rows(), objective=anchored(tuned, weight)
        )
        trainer.train()
        assert same(frozen_and_tuned(tuned)[0], before)
        drifts.append(drift(tuned))
    assert drifts[1] < drifts[0] / 2


def test_objective_in_sft_trainer(tmp_path: Path) -> None:
    tuned = LoRA(rank=2).attach(zoo.build("llama"))
    before, start = frozen_and_tuned(tuned)
    _, trainer = sft(tmp_path, objective_trainer(SFTTrainer), tuned=tuned, objective=anchored(tuned, 0.1))
    trainer.train()
    frozen, trained = frozen_and_tuned(tuned)
    assert same(frozen, before) and not any(torch.equal(v, start[n]) for n, v in trained.items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
