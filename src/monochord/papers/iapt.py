"""IAPT: Instruction-Aware Prompt Tuning for Large Language Models, May 28, 2024.

The project's language model of one million weights, frozen, learns four tasks at once, each told by an instruction in
one of two wordings: is a review of a film good or bad (Rotten Tomatoes), the mood of a tweet, an e-mail (wanted or
spam), and does a sentence come from a paper or a review. It answers by one word; accuracy is over the two words of a
task. Four prompts a block that a generator writes are compared with prompts at the same places that are the same for
all examples, with ten times as many of those, and with LoRA of as many weights. Every arm takes the best of the same
three learning rates, by validation.

Not yet run in full. In 200 steps with one seed no arm left chance by more than 7 points (iapt 57 %, LoRA 55 %, fixed
prompts 53 %), so that its claims can't be told apart yet: it needs more steps, or easier tasks, before it is run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import monochord as mc
from monochord.adapt.instruction_prompts import InstructionPrompts, PromptGenerator, activations
from monochord.adapt.lora import LoRA
from monochord.core.attach import Placement
from monochord.core.bilevel import Bilevel
from monochord.core.tuner import Tuner
from monochord.data import Split
from monochord.lab.paper import Paper, Trial
from monochord.lab.problem import Batch, Problem, Tried, copied, gradient
from monochord.objectives.next_token import NextToken

paper = Paper(
    "iapt",
    "Four soft tokens a block, written by a generator that reads the instruction, do more than forty fixed ones",
    uses=["monochord.adapt.instruction_prompts", "monochord.adapt.lora", "monochord.core.bilevel",
          "monochord.core.prompt", "monochord.lab.problem"],
    chance={"score": 0.5},
)  # fmt: skip

MODEL, STEPS, RATES = "ladder-1m", 200, (3e-3, 1e-2, 3e-2)
OPENING, ASKED, LENGTH = "<|endoftext|>Read and answer.", "\nIt is", 24
TASKS = {
    "films": (" Is the film good or bad?", " What does the review say?"),
    "tweets": (" Is the mood good or bad?", " How does the writer feel?"),
    "mail": (" Is the mail good or bad?", " Do I want to read this?"),
    "origin": (" Is it of a paper or a film?", " Where does it come from?"),
}
WORDS = {"origin": (" film", " paper")}  # of labels 0 and 1; else bad and good
GOOD = (" bad", " good")
LORA = LoRA(rank=3, alpha=6.0)
IAPT = InstructionPrompts(4, bottleneck=4)


@dataclass(frozen=True)
class Static(InstructionPrompts):
    """The same prompts for every example: of the generators only the biases train, and nothing else is written."""

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        for site, change in super().plan(model, generator):
            if isinstance(change, PromptGenerator):  # its `up` is zero
                change.requires_grad_(False)
                change.bias.requires_grad_(True)
            yield site, change


@dataclass(frozen=True)
class Learnt(InstructionPrompts):
    """Generators whose activations are given and stay."""

    states: tuple[dict[str, Tensor], ...] = ()

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        states = iter(self.states)
        for site, change in super().plan(model, generator):
            if isinstance(change, PromptGenerator) and isinstance(change.activation, nn.Module):
                change.activation.load_state_dict(next(states))
                change.activation.requires_grad_(False)
            yield site, change


@paper.arm("iapt")
def iapt(trial: Trial) -> dict[str, Any]:
    """Four prompts a block; and what is left when each example's generators read that of another."""
    tried = _tried(trial, IAPT)
    problem = _problem(trial)
    hooks = [change.register_forward_pre_hook(_of_another) for change in _generators(tried)]
    shuffled = problem.score(tried.model, problem.test)
    for hook in hooks:
        hook.remove()
    return {**tried.measures(), "shuffled": shuffled, **_exactness(tried, problem.test[0])}


@paper.arm("four fixed prompts", role="baseline")
def static(trial: Trial) -> dict[str, Any]:
    """As many prompts at the same places, the same for all."""
    return _tried(trial, Static(4)).measures()


@paper.arm("forty fixed prompts", role="baseline")
def many(trial: Trial) -> dict[str, Any]:
    """Ten times as many of those."""
    return _tried(trial, Static(40)).measures()


@paper.arm("lora", role="baseline")
def lora(trial: Trial) -> dict[str, Any]:
    """LoRA of rank 3 on queries and values: as many weights as iapt."""
    problem = _problem(trial)
    return {**_tried(trial, LORA).measures(), "untuned": problem.score(problem.model(), problem.test)}


@paper.arm("pooled evenly")
def average(trial: Trial) -> dict[str, Any]:
    """The mean of the instruction in the place of attention."""
    return _tried(trial, InstructionPrompts(4, 4, pooling="mean")).measures()


@paper.arm("relu")
def relu(trial: Trial) -> dict[str, Any]:
    """A fixed activation."""
    return _tried(trial, InstructionPrompts(4, 4, activation="relu")).measures()


@paper.arm("activations first")
def bilevel(trial: Trial) -> dict[str, Any]:
    """Activations learn on one half while generators learn on the other; then they stay and new generators learn."""
    problem, steps = _problem(trial), trial.pick(smoke=2, full=STEPS)
    model, halves = problem.model(), [problem.batches(steps)[i] for i in range(steps)]
    tuned = IAPT.attach(model, seed=trial.seed)
    above = [p for act in activations(tuned) for p in act.parameters()]
    update = Bilevel(gradient(RATES[1]), gradient(RATES[1]), above_parameters=above, held=halves[1::2])
    mc.fit(model, halves[::2], NextToken(), steps=steps // 2, update=update, seed=trial.seed, schedule="linear",
           warmup=0.1, progress=False)  # fmt: skip
    states = tuple({n: v.detach().clone() for n, v in act.state_dict().items()} for act in activations(tuned))
    grid = torch.linspace(-3, 3, 61)
    with torch.no_grad():
        curves = torch.stack([act(grid) for act in activations(tuned)])
    spread = (curves - nn.functional.gelu(grid)).square().mean(1).sqrt()
    return {**_tried(trial, Learnt(4, 4, states=states)).measures(), "curves": curves, "moved": spread.mean()}


@paper.arm("one instruction", role="control")
def one_instruction(trial: Trial) -> dict[str, Any]:
    """Trained with generators that read nothing but the opening words, the same in all examples."""
    return _tried(trial, IAPT, _problem(trial, opening_only=True)).measures()


@paper.arm("serving", seeded=False)
def serving(trial: Trial) -> dict[str, Any]:
    """Decoding for four tenants in one batch: IAPT's prompts in the cache, LoRA's factors row by row, the base."""
    model, tokens = copied(MODEL).eval(), trial.pick(smoke=2, full=40)
    ids = torch.randint(5, 2000, (8, 32), generator=Generator().manual_seed(0))
    caches, whole, span = [], [], (torch.arange(32) < 24).long().expand(2, -1)
    with torch.inference_mode():
        for tenant, rows in enumerate(torch.split(ids, 2)):
            with _tenant(model, tenant):
                whole.append(model(rows, instruction_mask=span).logits[:, 24:])
                caches.append(model(rows[:, :24], use_cache=True).past_key_values)
        plain = [model(ids[:, :24], use_cache=True).past_key_values]
        later = _decoded(model, _joined(caches), ids[:, 24:])
    found: dict[str, Any] = {"difference": (later - torch.cat(whole)).abs().max()}
    times: dict[str, list[float]] = {"base": [], "iapt": [], "lora": []}
    for _ in range(trial.pick(smoke=1, full=9)):  # in turn, so that a busy machine is busy for all
        for name in times:
            hooks = _rows_of_lora(model) if name == "lora" else []
            caching = caches if name == "iapt" else plain
            cache, begin = _joined(caching), time.process_time()
            _decoded(model, cache, ids[:, :1].expand(-1, tokens))
            times[name].append((time.process_time() - begin) / tokens)
            with _Kernels() as kernels, FlopCounterMode(display=False) as flops:
                _decoded(model, _joined(caching), ids[:, :1])
            found |= {f"{name}_kernels": kernels.count, f"{name}_flops": flops.get_total_flops()}
            for hook in hooks:
                hook.remove()
    return {**found, **{f"{name}_tokens_per_second": 8 / np.median(taken) for name, taken in times.items()}}


@paper.claim("the response changes nothing that is written, and the model's own weights stay, to the bit", exact=True)
def _(e):
    return e["iapt"].unread.min == 1 and e["iapt"].frozen.min == 1


@paper.claim("decoding from the cache of four tenants gives the logits of each tenant's own full forward", exact=True)
def _(e):
    return e["serving"].difference.max < 1e-4


@paper.claim("decoding with iapt runs as many kernels as the base", exact=True)
def _(e):
    return e["serving"].iapt_kernels.mean == e["serving"].base_kernels.mean


@paper.claim("LoRA has as many weights, within 5 %")
def _(e):
    return abs(e["lora"].trained.mean / e["iapt"].trained.mean - 1) <= 0.05


@paper.claim("iapt is at least 2 points better than as many fixed prompts")
def _(e):
    return e["iapt"].score.mean >= e["four fixed prompts"].score.mean + 0.02


@paper.claim("and at most half a point behind ten times as many")
def _(e):
    return e["iapt"].score.mean >= e["forty fixed prompts"].score.mean - 0.005


@paper.claim("and within a point of LoRA")
def _(e):
    return e["iapt"].score.mean >= e["lora"].score.mean - 0.01


@paper.claim("with another example's instruction it falls to fixed prompts or below")
def _(e):
    return e["iapt"].shuffled.mean <= e["four fixed prompts"].score.mean


@paper.claim("with the same instruction for all the gain over fixed prompts is within a point of none")
def _(e):
    return abs(e["one instruction"].score.mean - e["four fixed prompts"].score.mean) <= 0.01


@paper.claim("decoding for four tenants gives at least 1.1 times LoRA's tokens a second")
def _(e):
    own = e["serving"]
    return own.iapt_tokens_per_second.mean >= 1.1 * own.lora_tokens_per_second.mean


@paper.figure("Accuracy over four tasks")
def _(e, axes):
    arms = [arm for arm in e if arm != "serving"]
    bars = [(arm, e[arm].score) for arm in arms] + [("iapt, another's instruction", e["iapt"].shuffled)]
    bars.sort(key=lambda bar: bar[1].mean)
    axes.barh([name for name, _ in bars], [m.mean for _, m in bars], xerr=[m.interval.half_width for _, m in bars])
    axes.axvline(e["lora"].untuned.mean, color="grey", ls=":", lw=0.8)
    axes.set(xlabel="accuracy", xlim=(0.4, 0.9))


@paper.figure("Activations that the blocks' generators learnt")
def _(e, axes):
    grid = np.linspace(-3, 3, 61)
    for number, curve in enumerate(e["activations first"].curves.mean):
        axes.plot(grid, curve, label=f"block {number}")
    axes.plot(grid, nn.functional.gelu(torch.from_numpy(grid)).numpy(), color="grey", ls=":", label="at the start")
    axes.set(xlabel="x", ylabel="f(x)")
    axes.legend(frameon=False)


def _tried(trial: Trial, tuner: Tuner, problem: Problem | None = None) -> Tried:
    problem = problem or _problem(trial)
    rates = trial.pick(smoke=RATES[:1], full=RATES)
    return problem.best(lambda: tuner, rates, trial.pick(smoke=1, full=STEPS), train_head=False)


def _problem(trial: Trial, opening_only: bool = False) -> Problem:
    rows = {part: _rows(trial, part) for part in ("train", "validation", "test")}
    steps, rng = trial.pick(smoke=2, full=STEPS), np.random.default_rng(trial.seed)
    size = len(rows["train"])
    order = np.concatenate([rng.permutation(size) for _ in range(-(-steps * 16 // size))])[: steps * 16]
    train = [_batch([rows["train"][i] for i in part], opening_only) for part in order.reshape(-1, 16)]
    held = [[_batch(rows[part][i : i + 50], opening_only) for i in range(0, len(rows[part]), 50)]
            for part in ("validation", "test")]  # fmt: skip
    return Problem(lambda: copied(MODEL), Split({"batch": train}), held[0], held[1], NextToken(), _accuracy,
                   seed=trial.seed)  # fmt: skip


@cache
def _rows(trial: Trial, part: str) -> list[tuple[list[int], list[int], int]]:
    """How a prompt begins in all examples, how it goes on, and the answer: as many of each class and task."""
    tokenizer = mc.models.processor(MODEL)
    begin, end = {"train": (0, 150), "validation": (150, 190), "test": (0, 100)}[part]
    end = trial.pick(smoke=begin + 2, full=end)
    seed = 0 if part == "test" else trial.seed
    opening, tail = (tokenizer(text)["input_ids"] for text in (OPENING, ASKED))
    words, made = np.random.default_rng((seed, begin, 5)), []
    for task, wordings in TASKS.items():
        texts, labels = _texts(task, part == "test")
        answers = [tokenizer(word)["input_ids"][0] for word in WORDS.get(task, GOOD)]
        for label in (0, 1):
            for row in np.random.default_rng((seed, label)).permutation(np.flatnonzero(labels == label))[begin:end]:
                asked = tokenizer(wordings[words.integers(2)] + "\n")["input_ids"]
                text = tokenizer(texts[row][:300])["input_ids"][:LENGTH]
                made.append((opening, asked + text + tail, answers[label]))
    return [made[i] for i in words.permutation(len(made))]


@cache
def _texts(task: str, test: bool) -> tuple[list[str], np.ndarray]:
    """Texts of a task and whether each is good, or from a paper."""
    if task in ("films", "mail"):
        data = mc.data("spam") if task == "mail" else mc.data("movie-reviews", source="rotten-tomatoes")
        rows = data["test" if test else "train"]
        return list(rows["text"]), np.asarray(rows["label"]) ^ (task == "mail")
    texts: list[str] = []
    labels: list[int] = []
    for source in ("tweets",) if task == "tweets" else ("movies", "news"):
        data = mc.data("sentiment-scores", source=source)
        for rows in [data["validation"], data["test"]] if test else [data["train"]]:
            texts += rows["text"]
            values = np.asarray(rows["value"])
            labels += [source == "news"] * len(values) if task == "origin" else np.where(
                values > 1, 1, np.where(values < -1, 0, -1)).tolist()  # fmt: skip
    return texts, np.array(labels, np.int64)


def _batch(rows: Sequence[tuple[list[int], list[int], int]], opening_only: bool) -> Batch:
    """Padded on the right; the answer is the last token, and no part of the instruction."""
    length = max(len(opening) + len(rest) + 1 for opening, rest, _ in rows)
    made = {"input_ids": torch.zeros(len(rows), length, dtype=torch.long)}
    made |= {name: torch.zeros_like(made["input_ids"]) for name in ("attention_mask", "instruction_mask")}
    made["labels"] = torch.full_like(made["input_ids"], -100)
    for i, (opening, rest, answer) in enumerate(rows):
        ids = [*opening, *rest, answer]
        made["input_ids"][i, : len(ids)] = torch.tensor(ids)
        made["attention_mask"][i, : len(ids)] = 1
        made["instruction_mask"][i, : len(opening) if opening_only else len(ids) - 1] = 1
        made["labels"][i, len(ids) - 1] = answer
    return made


def _accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    return float(torch.cat([_right(model, batch) for batch in batches]).float().mean())


def _right(model: nn.Module, batch: Batch) -> Tensor:
    """(batch,): whether the answer is likelier than its task's other one."""
    tokenizer = mc.models.processor(MODEL)
    other: dict[int, int] = {}
    for pair in (*WORDS.values(), GOOD):
        first, second = (tokenizer(word)["input_ids"][0] for word in pair)
        other |= {first: second, second: first}
    with torch.inference_mode():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    rows, answers = torch.arange(len(logits)), batch["labels"].amax(1)
    last = logits[rows, batch["attention_mask"].sum(1) - 2]
    right: Tensor = last[rows, answers] > last[rows, torch.tensor([other[int(answer)] for answer in answers])]
    return right


def _generators(tried: Tried) -> list[PromptGenerator]:
    assert tried.tuned is not None
    return [change for _, change in tried.tuned.placements if isinstance(change, PromptGenerator)]


def _of_another(generator: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hidden states and mask of the example before in the batch."""
    return tuple(arg.roll(1, 0) for arg in args)


def _exactness(tried: Tried, batch: Batch) -> dict[str, float]:
    """1 where other responses write the same prompts, and where the model's weights are what they were."""
    written: list[Tensor] = []
    hooks = [g.register_forward_hook(lambda module, args, out: written.append(out)) for g in _generators(tried)]
    for batches in ([batch], [{**batch, "input_ids": torch.where(batch["labels"] >= 0, 7, batch["input_ids"])}]):
        _accuracy(tried.model, batches)
    for hook in hooks:
        hook.remove()
    half, now = len(written) // 2, dict(tried.model.named_parameters())
    same = [torch.equal(a, b) for a, b in zip(written[:half], written[half:], strict=True)]
    kept = [torch.equal(now[name], value) for name, value in copied(MODEL).named_parameters()]
    return {"unread": float(all(same)), "frozen": float(all(kept))}


def _tenant(model: nn.Module, seed: int) -> Any:
    """Generators with weights as large as trained ones, attached for a block."""
    tuned, generator = IAPT.attach(model, seed=seed), Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tuned


def _joined(caches: Sequence[Any]) -> DynamicCache:
    """One cache of all rows."""
    joined = DynamicCache()
    for number, layers in enumerate(zip(*(part.layers for part in caches), strict=True)):
        joined.update(torch.cat([x.keys for x in layers]), torch.cat([x.values for x in layers]), number)
    return joined


def _decoded(model: nn.Module, cache: DynamicCache, ids: Tensor) -> Tensor:
    """Logits of tokens that come one after the other."""
    with torch.inference_mode():
        return torch.cat([model(token, past_key_values=cache).logits for token in torch.split(ids, 1, 1)], 1)


def _rows_of_lora(model: nn.Module) -> list[Any]:
    """LoRA with factors of each row's own, as two batched products a weight, the fewest there can be."""
    hooks = []
    for site in mc.resolve(model, LORA.sites):
        rows, columns = site.shape or (0, 0)
        down = torch.randn(8, columns, LORA.rank, generator=Generator().manual_seed(0)) / columns
        up = torch.randn(8, LORA.rank, rows, generator=Generator().manual_seed(1)) / rows

        def beside(module: nn.Module, args: Any, out: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
            return torch.baddbmm(out, torch.bmm(args[0], down), up, alpha=LORA.alpha / LORA.rank)

        hooks.append(model.get_submodule(site.module).register_forward_hook(beside))
    return hooks


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that run, views among them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
