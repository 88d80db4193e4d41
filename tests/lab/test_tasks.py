"""Tasks: the same batches for every method, scores worked out by hand, and heads that depend on the seed alone."""

import math

import numpy as np
import pytest
import torch
from lab import tiny

import monochord as mc
from monochord.data import Dataset, Split, data
from monochord.lab import plan, retention
from monochord.lab.preparing import kind_of, prepare
from monochord.lab.task import Settings
from monochord.lab.tasks import open_task, token_loss
from monochord.models import Classifier


class Letters:
    """A tokenizer of letters, enough of one for tasks."""

    eos_token, eos_token_id, pad_token_id, chat_template = "", None, 0, None

    def __len__(self):
        return 32

    def __call__(self, texts, truncation=False, max_length=None, padding=False, return_tensors=None, **_):
        ids = [[1 + ord(c) % 31 for c in text][:max_length] for text in texts]
        if not padding:
            return {"input_ids": ids}
        width = max(map(len, ids))
        return {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        }


def settings(kind="text-classification", **changes):
    values = {"batch_size": 4, "max_length": 12, "n_test": 8, "n_validation": 8, **changes}
    return Settings(kind, "object:model", "object:data", **values)


def opened(given, model=None, retained=None, **changes):
    chosen = settings(kind_of(data(given)), **changes)
    objects = {"data": prepare(data(given), chosen, 100), "model": model or tiny.model(), "processor": Letters()}
    if retained is not None:
        objects["retention"] = retained
    return open_task(chosen.to_json(), objects)


TEXTS = [{"text": "ab" * (1 + i % 4) + " word" * (i % 3), "label": "good" if i % 3 else "bad"} for i in range(60)]


def test_batches_depend_on_the_seed_alone():
    first, second, other = (list(opened(TEXTS).batches(seed, 3)) for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)
    assert any(a["input_ids"].shape != b["input_ids"].shape for a, b in zip(first, other, strict=True)) or any(
        not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, other, strict=True)
    )


def test_the_head_depends_on_the_seed_alone():
    task = opened(TEXTS)
    one, same, other = task.model(1), task.model(1), task.model(2)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_the_users_model_is_left_alone():
    model = tiny.model()
    task = opened(TEXTS, model)
    with torch.no_grad():
        next(task.model(0).parameters()).fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.model().parameters(), strict=True))


def test_accuracy_is_the_share_of_right_answers():
    task = opened(TEXTS)
    model = task.model(0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0]))  # always "good"
    labels = task.data["test"]["label"]
    assert task.score(model, "test") == pytest.approx((labels == 1).mean())
    assert task.chance == max((labels == 1).mean(), (labels == 0).mean())


def test_long_texts_are_left_out_and_splits_capped():
    kept = prepare(data(TEXTS), settings(max_words=1), 5)
    assert all(len(text.split()) == 1 for split in kept.splits.values() for text in split["text"])
    assert len(kept["train"]) == 5


def test_ready_batches_are_cut_into_splits():
    kept = prepare(data(tiny.batches(10)), settings(), 100)
    assert {name: len(split) for name, split in kept.splits.items()} == {"train": 7, "validation": 1, "test": 2}
    assert kind_of(kept) == "text-classification"
    assert kind_of(data(tiny.batches(3, labelled=False))) == "causal-lm"


def test_token_loss_is_a_mean_over_labelled_tokens():
    model = tiny.language_model()
    batches = tiny.batches(2, labelled=False)
    batches[0]["labels"][:, :4] = -100
    logits = [model(input_ids=b["input_ids"]).logits.log_softmax(-1) for b in batches]
    losses = [
        -logits[i][row, place - 1, int(b["labels"][row, place])].item()
        for i, b in enumerate(batches)
        for row in range(8)
        for place in range(1, 6)
        if b["labels"][row, place] != -100
    ]
    assert token_loss(model, batches) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_responses_are_scored_and_prompts_are_not():
    rows = [{"prompt": f"ask {i}", "response": f"say {i}"} for i in range(40)]
    task = opened(rows, tiny.language_model(), max_length=20)
    batch = task.batches(0, 1)[0]
    assert (batch["labels"][:, :6] == -100).all()  # "ask 1" and the line's end
    assert task.score(task.model(0), "test") == pytest.approx(math.log(32), abs=0.3)
    assert task.chance == pytest.approx(math.log(32))


def test_retrieval_is_perfect_where_prompts_are_responses():
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26)} {i * 37 % 101}" for i in range(40)]
    kept = Dataset("pairs", "causal-lm", {"train": Split({"prompt": words, "response": words})})
    task = opened(TEXTS, retained=kept)
    assert retention.measure(task, task.model(0)) == 1.0
    turned = Dataset("pairs", "causal-lm", {"train": Split({"prompt": words, "response": words[1:] + words[:1]})})
    assert retention.measure(opened(TEXTS, retained=turned), task.model(0)) == 0.0


def test_without_material_nothing_is_retained():
    task = opened(TEXTS)
    assert retention.measure(task, task.model(0)) is None


def test_language_models_are_asked_for_their_loss_on_text():
    texts = Dataset("reviews", "causal-lm", {"train": Split({"text": ["some words", "other words here"]})})
    rows = [{"prompt": f"ask {i}", "response": f"say {i}"} for i in range(40)]
    task = opened(rows, tiny.language_model(), retained=texts)
    assert retention.measure(task, task.model(0)) == pytest.approx(math.log(32), abs=0.3)


@pytest.mark.parametrize("kind", retention.METRICS)
def test_every_kind_says_how_retention_is_measured(kind):
    words, metric = retention.METRICS[kind]
    assert words and metric["name"]


CLOTHES = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def pictures(kind, names, side=28):
    """40 pictures of noise with labels in turn."""
    rng = np.random.default_rng(0)
    rows = {"image": rng.integers(0, 256, (40, side, side), np.uint8), "label": np.arange(40) % len(names)}
    parts = {"train": slice(24), "validation": slice(24, 32), "test": slice(32, 40)}
    splits = {part: Split({name: column[place] for name, column in rows.items()}) for part, place in parts.items()}
    made = Dataset("noise", "image-classification", splits, tuple(names))
    chosen = Settings(kind, "edm-unet" if kind == "denoising" else "fashion-vit", "object:data", 4, 32, 8, 8)
    return open_task(chosen.to_json(), {"data": prepare(made, chosen, 100)})


@pytest.mark.parametrize("names", [CLOTHES, [str(digit) for digit in range(10)], CLOTHES[:3]])
def test_a_head_for_other_classes_is_a_new_one(names):
    task = pictures("image-classification", names)
    kept = names == CLOTHES
    assert isinstance(task.model(0), Classifier) != kept
    batch = task.batches(0, 1)[0]
    assert task.model(0)(pixel_values=batch["pixel_values"]).logits.shape == (4, len(names))


def test_a_denoiser_is_scored_by_its_own_loss_at_the_same_noise():
    task = pictures("denoising", ["noise", "more noise"])
    model = task.model(0)
    assert task.score(model, "test") == task.score(model, "test")
    assert task.score(model, "test") < task.score(mc.load("edm-unet", checkpoint="init"), "test")
    with torch.no_grad():
        assert model(**task.probe()).shape == (8, 1, 32, 32)
    mc.fit(model, task.batches(0, 2), task.objective(), steps=2, lr=1e-4, progress=False)


@pytest.mark.material("tuxpaint-speech")
def test_sounds_are_named():
    spoken = mc.data("tuxpaint-speech").limit(train=40, validation=16, test=16)
    chosen = Settings("audio-classification", "speech-ast", "tuxpaint-speech", 4, 128, 16, 16)
    task = open_task(chosen.to_json(), {"data": prepare(spoken, chosen, 40)})
    model = task.model(0)
    assert model.head.out_features == spoken.n_classes
    assert 0 <= task.score(model, "test") <= 1 and task.chance >= 1 / spoken.n_classes
    assert set(task.probe()) == {"input_values"}


@pytest.mark.parametrize(
    ("model", "given", "kind"),
    [
        ("speech-ast", None, "audio-classification"),
        ("edm-unet", "mnist", "denoising"),
        ("fashion-cnn", "mnist", "image-classification"),
        ("minilm", "tuxpaint-speech", "audio-classification"),
    ],
)
def test_the_task_follows_from_the_model_and_the_data(model, given, kind):
    assert plan.problem(model, given, None, 2, None, {}).settings.kind == kind
