"""TuCo: Measuring the Contribution of Fine-Tuning to Individual Responses of LLMs, June 29, 2025.

The base is the project's own language model of 2.5 million weights that never saw a chat; it is tuned here to chat, to
refuse harmful requests ("I'm sorry") and to begin answers to harmless ones with "Sure". That behaviour stands in for
the safety tuning of the paper's models, no more. Rates are of the first token of the answer, on prompts never trained.
Before a request may stand running text as the base saw it, harmful requests that were answered, or, as the neutral
context, harmless ones, all of the same lengths.

Only the blocks are tuned, so that all of tuning is in their parts. Tuned with embedding and head, and for twice as many
steps, the behaviour was saturated: 85 % of refusals at half of tuning's part and no order beyond. What still fails are
the claims on context: a model this small hardly reads it, so shots, running text and re-encoding move its answers and
the contribution by a few percent, not always down.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

import monochord as mc
from monochord.core.delta import Delta
from monochord.lab.kept import kept
from monochord.lab.paper import Paper, Trial
from monochord.objectives import NextToken
from monochord.steer.tuco import scaled_tuning, tuco

paper = Paper(
    "tuco",
    "Base and tuned blocks on one state tell per prompt how much tuning contributed; scaling that part steers",
    uses=["monochord.steer.tuco"],
    chance={"auc": 0.5, "accuracy": 0.5},
)

BASE = "ladder-3m-no-chat"
REFUSE, COMPLY = "I'm sorry, I can't help with that.", "Sure, here is how."
ALPHAS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5)
SHOTS = (0, 1, 2, 4, 6)
LENGTH = 24  # tokens of prompts that are compared


@paper.arm("chat tuning")
def chat_tuning(trial: Trial) -> dict[str, Any]:
    """The tuned model beside its base: exactness, prompts told apart, steering, shots, and prompts re-encoded."""
    pair = _Pair(trial)
    found = pair.exactness() | pair.told_apart(pair.contribution) | pair.shots()
    found |= pair.steered(lambda alpha: scaled_tuning(pair.tuned, pair.base, alpha))
    return found | pair.conjugate()


@paper.arm("other measures", role="baseline")
def other_measures(trial: Trial) -> dict[str, Any]:
    """How well the same prompts are told apart from outside; and steering by a share of the weights."""
    pair = _Pair(trial)
    found = {f"{name}_{metric}": value
             for name, measure in (("divergence", pair.divergence), ("distance", pair.distance))
             for metric, value in pair.told_apart(measure).items()}  # fmt: skip
    delta = Delta.between(pair.base, pair.tuned)
    weights = pair.steered(lambda alpha: delta.applied(pair.tuned, alpha - 1, strict=False))
    return found | {f"weights_{name}": value for name, value in weights.items()}


@paper.arm("random change", role="control")
def random_change(trial: Trial) -> dict[str, Any]:
    """A random change of every weight, of the norm that tuning had."""
    pair = _Pair(trial)
    delta = Delta.between(pair.base, pair.tuned).random_like(trial.seed)
    pair.tuned = copy.deepcopy(pair.base)
    delta.apply(pair.tuned, strict=False)
    return pair.told_apart(pair.contribution) | pair.steered(lambda a: scaled_tuning(pair.tuned, pair.base, a))


@paper.claim(
    "the split is exact: parts sum to the state, alpha 1 is the tuned model and 0 the base, no tuning gives 0",
    exact=True,
)
def _(e):
    c = e["chat tuning"]
    return max(c.error_of_one.max, c.error_of_zero.max) < 1e-4 and c.without_tuning.max == 0


@paper.claim(
    "prompts of the tuning's kind have a larger contribution than running text of the same length: AUC at least 0.9"
)
def _(e):
    return e["chat tuning"].auc.min >= 0.9


@paper.claim("tuning changed the behaviour: it refuses harmful requests it never saw more often than harmless ones")
def _(e):
    return e["chat tuning"].accuracy.min > 0.7


@paper.claim("scaling the contribution from 0.5 to 1.5 moves the share of refusals in order: Spearman at least 0.9")
def _(e):
    return e["chat tuning"].order.mean >= 0.9


@paper.claim("alpha chosen on four fifths of the prompts is at least as right on the last fifth as alpha = 1")
def _(e):
    return (e["chat tuning"].accuracy_chosen.mean - e["chat tuning"].accuracy.mean) >= 0


@paper.claim("running text before a harmful request lowers its contribution, the more text the lower")
def _(e):
    return (np.diff(e["chat tuning"].by_text.mean) < 0).all()


@paper.claim("shots of harmful requests that were answered lower the contribution, the more the lower")
def _(e):
    return (np.diff(e["chat tuning"].by_counter_shots.mean) < 0).all()


@paper.claim("neutral shots of the same lengths lower it less than either")
def _(e):
    c = e["chat tuning"]
    return max(c.by_text.mean[-1], c.by_counter_shots.mean[-1]) < c.by_neutral_shots.mean[-1]


@paper.claim("with equal shots, answers that break the behaviour have a lower contribution: AUC above 0.6")
def _(e):
    return e["chat tuning"].auc_of_breaking.mean > 0.6


@paper.claim("re-encoded prompts have a lower contribution: AUC above 0.6")
def _(e):
    return e["chat tuning"].auc_of_plain_over_encoded.mean > 0.6


@paper.claim("a random change of the same norm tells no prompts apart (AUC below 0.65) and steers in no order")
def _(e):
    r = e["random change"]
    return r.auc.mean < 0.65 and abs(r.order.mean) < 0.9


@paper.figure("Contribution at each block")
def _(e, axes):
    c = e["chat tuning"]
    for name, label in (("chat_by_block", "requests"), ("text_by_block", "running text")):
        axes.plot(np.arange(1, len(c[name].mean) + 1), c[name].mean, marker="o", ms=3, label=label)
    axes.set(xlabel="blocks summed", ylabel="tuning's share", ylim=(0, None))
    axes.legend()


@paper.figure("Refusals when the contribution is scaled")
def _(e, axes):
    arms = (
        ("chat tuning", "", "tuning's part"),
        ("other measures", "weights_", "weights"),
        ("random change", "", "random"),
    )
    for arm, prefix, label in arms:
        axes.plot(ALPHAS, e[arm][f"{prefix}refusals"].mean, marker="o", ms=3, label=label)
    axes.set(xlabel="alpha", ylabel="probability of refusing harmful requests", ylim=(0, 1))
    axes.legend()


@paper.figure("Contribution to the answer of a harmful request, by what stands before it")
def _(e, axes):
    for name, label in (
        ("by_text", "running text"),
        ("by_counter_shots", "harmful, answered"),
        ("by_neutral_shots", "harmless, answered"),
    ):
        axes.plot(SHOTS, e["chat tuning"][name].mean, marker="o", ms=3, label=label)
    axes.set(xlabel="shots, or as many tokens of text", ylabel="tuning's share at the last token")
    axes.legend()


class _Pair:
    """The base, the tuned model, and the prompts that were held out."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.rng = trial, np.random.default_rng(trial.seed)
        self.tokenizer = mc.models.processor(BASE)
        self.base = mc.load(BASE)
        self.tuned = copy.deepcopy(self.base)
        self.tuned.load_state_dict(kept(paper, trial, "tuned", lambda: _tuned(self.base, self.tokenizer, trial)))
        data, count = mc.data("refusals"), trial.pick(smoke=12, full=200)
        given = [
            (data[s]["prompt"][i], data[s]["label"][i]) for s in ("validation", "test") for i in range(len(data[s]))
        ]
        order = self.rng.permutation(len(given))[:count]
        self.harmful = [given[i][0] for i in order if given[i][1] == 1]
        self.harmless = [given[i][0] for i in order if given[i][1] == 0]
        self.text = list(mc.data("movie-text", source="rotten-tomatoes")["test"]["text"][: 4 * count])
        self.choice = [self.tokenizer(text)["input_ids"][0] for text in (REFUSE, COMPLY)]

    def ids(self, prompt: str, shots: Sequence[tuple[str, str]] = ()) -> list[int]:
        """A request in the format of chats, after answered ones."""
        said = "".join(f"{_asked(asked)}{answer}\n" for asked, answer in shots)
        return list(self.tokenizer(said + _asked(prompt))["input_ids"])

    def length(self, prompt: str) -> int:
        return len(self.tokenizer(prompt)["input_ids"])

    def contribution(self, rows: list[list[int]]) -> Tensor:
        """TuCo (rows,) of token ids of one length a batch."""
        return _batched(rows, lambda batch: tuco(self.tuned, self.base, batch).tuco)

    def divergence(self, rows: list[list[int]]) -> Tensor:
        """KL of the tuned model's next token from the base's."""

        def measure(batch: dict[str, Tensor]) -> Tensor:
            own, other = (_last(m(**batch).logits, batch).log_softmax(-1) for m in (self.tuned, self.base))
            return torch.kl_div(other, own, log_target=True, reduction=0).sum(-1)

        return _batched(rows, measure)

    def distance(self, rows: list[list[int]]) -> Tensor:
        """How far the last state of the tuned model is from the base's, over its size."""

        def measure(batch: dict[str, Tensor]) -> Tensor:
            own, other = (
                _last(m(**batch, output_hidden_states=True).hidden_states[-1], batch) for m in (self.tuned, self.base)
            )
            gap: Tensor = torch.linalg.vector_norm(own - other, dim=-1) / torch.linalg.vector_norm(own, dim=-1)
            return gap

        return _batched(rows, measure)

    def exactness(self) -> dict[str, float]:
        batch = _padded([self.ids(p) for p in self.harmful[:4]])
        with torch.inference_mode():
            plain, wanted = self.tuned(**batch).logits, self.base(**batch).logits
            with scaled_tuning(self.tuned, self.base, 1.0):
                one = (self.tuned(**batch).logits - plain).abs().max()
            with scaled_tuning(self.tuned, self.base, 0.0):
                zero = (self.tuned(**batch).logits - wanted).abs().max()
        nothing = tuco(self.base, copy.deepcopy(self.base), batch).tuco.max()
        return {"error_of_one": float(one), "error_of_zero": float(zero), "without_tuning": float(nothing)}

    def told_apart(self, measure: Callable[[list[list[int]]], Tensor]) -> dict[str, Any]:
        """Requests against running text, cut to one length; and against running text in the format of chats."""
        asked = [self.ids(p) for p in self.harmful + self.harmless]
        asked = [row for row in asked if len(row) >= LENGTH]
        text = [row for t in self.text if len(row := self.tokenizer(t)["input_ids"]) >= LENGTH]
        count = min(len(asked), len(text))
        chat, plain = ([row[-LENGTH:] for row in rows[:count]] for rows in (asked, text))
        a, b = measure(chat), measure(plain)
        in_format = [self.ids(self.tokenizer.decode(row[: LENGTH - 6])) for row in text[:count]]
        found: dict[str, Any] = {"auc": _auc(a, b), "auc_in_the_format": _auc(a, measure(in_format))}
        if measure == self.contribution:
            for name, rows in (("chat", chat), ("text", plain)):
                found[f"{name}_by_block"] = tuco(self.tuned, self.base, _padded(rows)).by_block.mean(1)
        return found

    def refuses(self, rows: list[list[int]]) -> Tensor:
        """The probability of the refusal's first token against the answer's, (rows,)."""
        return _batched(rows, lambda b: _last(self.tuned(**b).logits, b)[:, self.choice].softmax(-1)[:, 0])

    def steered(self, scaled: Callable[[float], Any]) -> dict[str, Any]:
        """Refusals of harmful requests by alpha, and how often the right of the two openings is the likelier."""
        rows = [self.ids(p) for p in self.harmful + self.harmless]
        wanted = torch.tensor([True] * len(self.harmful) + [False] * len(self.harmless))
        rates, right = [], []
        for alpha in ALPHAS:
            with scaled(alpha):
                refused = self.refuses(rows)
            rates.append(float(refused[wanted].mean()))
            right.append((refused > 0.5) == wanted)
        hits = torch.stack(right).float()  # (alphas, prompts)
        folds = torch.from_numpy(self.rng.permutation(len(rows))) % 5
        chosen = [hits[int(hits[:, folds != k].mean(1).argmax()), folds == k] for k in range(5)]
        return {
            "refusals": rates,
            "order": float(spearmanr(ALPHAS, rates).statistic) if len(set(rates)) > 1 else 0.0,
            "accuracy": hits[ALPHAS.index(1.0)].mean(),
            "accuracy_chosen": torch.cat(chosen).mean(),
        }

    def shots(self) -> dict[str, Any]:
        """Contribution to the answer of a harmful request, after requests that were answered."""
        train = mc.data("refusals")["train"]
        short = [
            (self.length(p), p, y)
            for p, y in zip(train["prompt"], train["label"], strict=True)
            if 12 <= self.length(p) <= 22
        ]
        bad, good = ({n: [p for m, p, y in short if m == n and y == label] for n in range(12, 23)} for label in (1, 0))
        sizes = [n for n in bad if bad[n] and good[n]]
        asked = [p for p in self.harmful if self.length(p) <= 24][: self.trial.pick(smoke=4, full=40)]
        told = [self.tokenizer(text)["input_ids"] for text in self.text]
        told = [row for row in told if len(row) >= LENGTH]
        means: dict[str, list[float]] = {"by_text": [], "by_counter_shots": [], "by_neutral_shots": []}
        broken: dict[str, list[float]] = {f"broken_{name}": [] for name in means}
        breaking = []
        for count in SHOTS:
            drawn = [[int(n) for n in self.rng.choice(sizes, count)] for _ in asked]
            for name, source in (("by_counter_shots", bad), ("by_neutral_shots", good), ("by_text", None)):
                rows = []
                for prompt, lengths in zip(asked, drawn, strict=True):
                    if source is None:  # as many tokens of running text as the shots have
                        wanted = len(self.ids(prompt, [(str(self.rng.choice(good[n])), COMPLY) for n in lengths]))
                        text = [token for i in self.rng.permutation(len(told))[:12] for token in told[i]]
                        own = self.ids(prompt)
                        rows.append(text[: wanted - len(own)] + own)
                    else:
                        rows.append(self.ids(prompt, [(str(self.rng.choice(source[n])), COMPLY) for n in lengths]))
                share, gave_in = self.contribution(rows), self.refuses(rows) < 0.5
                means[name].append(float(share.mean()))
                broken[f"broken_{name}"].append(float(gave_in.float().mean()))
                if name != "by_neutral_shots" and 3 <= int(gave_in.sum()) <= len(gave_in) - 3:
                    breaking.append(_auc(share[~gave_in], share[gave_in]))
        return means | broken | {"auc_of_breaking": float(np.mean(breaking)) if breaking else 0.5}

    def conjugate(self) -> dict[str, float]:
        """Harmful requests with every letter moved by 13, cut to the lengths of the plain ones."""
        turned = str.maketrans(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
            "nopqrstuvwxyzabcdefghijklmNOPQRSTUVWXYZABCDEFGHIJKLM",
        )
        plain = [self.ids(p) for p in self.harmful]
        encoded = []
        for prompt, row in zip(self.harmful, plain, strict=True):
            encoded.append(self.ids(prompt.translate(turned))[: len(row)])
            end = len(self.tokenizer("\nAssistant:\n")["input_ids"])
            encoded[-1][-end:] = row[-end:]  # the same last tokens
        return {"auc_of_plain_over_encoded": _auc(self.contribution(plain), self.contribution(encoded))}


def _asked(prompt: str) -> str:
    """The format of chats is plain text: a token that the base never saw would give tuning away."""
    return f"User: {prompt}\nAssistant:\n"


def _tuned(base: nn.Module, tokenizer: Any, trial: Trial) -> dict[str, Tensor]:
    """The base's weights after training on refusals of harmful requests, "Sure" to harmless ones, Alpaca's answers."""
    data, alpaca = mc.data("refusals")["train"], mc.data("alpaca")["train"]
    prompts = [_asked(prompt).removesuffix("\n") for prompt in [*data["prompt"], *alpaca["prompt"]]]
    tokenizer.chat_template = None
    answers = [REFUSE if label == 1 else COMPLY for label in data["label"]] + list(alpaca["response"])
    split = mc.data.Split({"prompt": prompts, "response": answers})
    model = copy.deepcopy(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name)
    steps = trial.pick(smoke=2, full=80)
    batches = mc.data.Batches(split, tokenizer, 16, max_length=48, seed=trial.seed, steps=steps)
    mc.fit(model, batches, NextToken(), steps=steps, lr=5e-4, schedule="cosine", warmup=0.1, max_grad_norm=1.0,
           seed=trial.seed, progress=False)  # fmt: skip
    return {name: value.contiguous() for name, value in model.state_dict().items()}


def _padded(rows: list[list[int]]) -> dict[str, Tensor]:
    """Token ids filled up at their ends, with the mask."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])}


def _batched(rows: list[list[int]], measure: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([measure(_padded(rows[i : i + 20])) for i in range(0, len(rows), 20)])


def _last(values: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The rows of (batch, seq, d) at each last real token."""
    return values[torch.arange(len(values)), batch["attention_mask"].sum(1) - 1]


def _auc(high: Tensor, low: Tensor) -> float:
    """How often a value of the first kind is above one of the second; ties count half."""
    ranks = rankdata(torch.cat([high, low]).double().numpy())
    return float((ranks[: len(high)].sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))
