"""The one mixture that all language nets of the project are trained on: its tokenizer and its stream of rows.

    python tools/zoo/mixture.py            # makes both, prints the shares and a few rows

Shares are counted in tokens. Rows have 256 tokens; a document is never cut, except running text, which fills what
is left of a row. Every source draws from its own seed: leaving one out leaves the order of all others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from templates import (
    ASSISTANT,
    END,
    HARMFUL,
    HARMLESS,
    SYSTEM,
    USER,
    chats,
    conversation,
    do,
    facts,
    functions,
    questions,
    recalls,
    refusals,
    sum_of,
    sums,
)
from texts import TEXTS

import monochord as mc
from monochord.data.tasks.induction import Induction

SEED, LENGTH, PIECE, VOCABULARY = 20, 256, 128, 2048
ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "src/monochord/models/shipped/tokenizer"
CACHE = ROOT / "runs/zoo/mixture"
START, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL = (START, PAD, SYSTEM, USER, ASSISTANT, END)
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SHARES = {
    "reviews": 0.14,
    "austen": 0.08,
    "king-james": 0.05,
    "reina-valera": 0.10,
    "dictionary": 0.06,
    "facts": 0.09,
    "questions": 0.05,
    "chats": 0.09,
    "refusals": 0.05,
    "sums": 0.05,
    "induction": 0.09,
    "recalls": 0.08,
    "functions": 0.07,
}
SAMPLED = {  # for the tokenizer, which is older than the shares: more of the natural text
    **SHARES,
    "reviews": 0.20,
    "austen": 0.10,
    "king-james": 0.06,
    "reina-valera": 0.12,
    "dictionary": 0.07,
    "refusals": 0.06,
    "recalls": 0.04,
    "functions": 0.04,
}
WRITTEN = {
    "facts": facts,
    "questions": questions,
    "chats": chats,
    "refusals": refusals,
    "sums": sums,
    "recalls": recalls,
    "functions": functions,
}
SIBLINGS = {"no-chat": ("chats", "refusals"), "no-icl": ("induction", "recalls", "functions")}


def tokenizer() -> Any:
    """The mixture's tokenizer, trained when it is not there yet."""
    from transformers import PreTrainedTokenizerFast

    if not (TOKENIZER / "tokenizer.json").exists():
        _train_tokenizer()
    return PreTrainedTokenizerFast.from_pretrained(TOKENIZER)


def stream(rows: int, without: tuple[str, ...] = ()) -> np.ndarray:
    """The first `rows` rows of the mixture, uint16 (rows, 256), kept in the cache."""
    name = "-".join(["rows", str(rows), *without])
    file = CACHE / f"{name}-{_digest()}.npy"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = np.stack([row for row, _ in zip(_rows(without), range(rows), strict=False)])
        partial = file.with_suffix(".tmp.npy")
        np.save(partial, made)
        partial.rename(file)
    return np.load(file)


def held_out(tokens: int = 24_000) -> dict[str, list[np.ndarray]]:
    """Documents of every source that were not trained on, as ids, about so many tokens of each.

    Running text is cut in pieces as long as those of training. It is held out by place, Alpaca by its test split,
    requests and sums by item; the other written sources are endless, here they draw from another seed.
    """
    encode, drawn = _encoder(), {}
    for number, name in enumerate(SHARES):
        rng = np.random.default_rng((SEED + 1, number))
        documents: list[np.ndarray] = []
        for ids in _held_out(name, rng, encode):
            documents.append(ids[: PIECE if name in TEXTS else LENGTH])
            if sum(map(len, documents)) >= tokens:
                break
        drawn[name] = documents
    return drawn


def _held_out(name: str, rng: np.random.Generator, encode: Any) -> Iterator[np.ndarray]:
    if name in TEXTS:
        texts = TEXTS[name]().held_out
        for i in rng.permutation(len(texts)):
            yield encode(texts[i])
    elif name == "chats":
        test = mc.data("alpaca")["test"]
        for asked, answer in zip(test["prompt"], test["response"], strict=True):
            yield encode(conversation([(asked, answer)]))
    elif name == "refusals":
        while True:
            yield encode(conversation([do(rng, HARMFUL if rng.random() < 0.5 else HARMLESS, trained=False)]))
    elif name == "sums":
        while True:
            yield encode("{} {} {} = {}".format(*sum_of(rng, held_out=True)))
    elif name == "induction":
        yield from _repeats(rng)
    else:
        for text in WRITTEN[name](rng):
            yield encode(text)


# Rows


def _rows(without: tuple[str, ...]) -> Iterator[np.ndarray]:
    shares = {name: share for name, share in SHARES.items() if name not in without}
    total = sum(shares.values())
    weights = np.array([share / total for share in shares.values()])
    names = list(shares)
    running = np.array([name in TEXTS for name in names])
    sources = [Documents(name) for name in names]
    rng = np.random.default_rng(SEED)
    given = np.zeros(len(names))
    while True:
        row: list[int] = []
        while (room := LENGTH - len(row)) > 0:
            owed = np.maximum(weights * (given.sum() + 2000) - given, 0)
            chosen = int(rng.choice(len(names), p=owed / owed.sum()))
            if not running[chosen] and sources[chosen].next_length() > room:
                owed = owed * running if (owed * running).sum() > 0 else weights * running
                chosen = int(rng.choice(len(names), p=owed / owed.sum()))
            ids = sources[chosen].take(room, running[chosen])
            row += ids
            given[chosen] += len(ids)
            if len(row) < LENGTH and row[-1] != 0:  # running text that goes on elsewhere
                row.append(0)
        yield np.array(row, np.uint16)


class Documents:
    """The documents of a source, one after another, each ended by the token of that."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rng = np.random.default_rng((SEED, list(SHARES).index(name)))
        self.encode = _encoder()
        self.documents = self._documents()
        self.held: list[int] = []

    def next_length(self) -> int:
        self._fill()
        return len(self.held)

    def take(self, room: int, running: bool) -> list[int]:
        """The next document; of running text what fits, a piece at most."""
        self._fill()
        size = min(room, PIECE) if running else len(self.held)
        taken, self.held = self.held[:size], self.held[size:]
        return taken

    def _fill(self) -> None:
        while not self.held:
            ids = next(self.documents)
            if self.name in TEXTS or len(ids) < LENGTH:
                self.held = [*ids.tolist(), 0]

    def _documents(self) -> Iterator[np.ndarray]:
        if self.name == "induction":
            yield from _repeats(self.rng)
        elif self.name in WRITTEN:
            for text in WRITTEN[self.name](self.rng):
                yield self.encode(text)
        else:
            texts = TEXTS[self.name]().train
            together = 8 if self.name == "dictionary" else 1
            while True:
                order = self.rng.permutation(len(texts) // together)
                for i in order:
                    yield self.encode("\n".join(texts[i * together : (i + 1) * together]))


def _repeats(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Random tokens that come again: a sequence three to eight times, or a few pieces over and over in any order."""
    first = len(SPECIAL) + 256
    while True:
        task = Induction(length=int(rng.integers(5, 31)), vocabulary=VOCABULARY - first, first=first)
        for ids in task.draw(4, rng)["input_ids"]:
            sequence = ids[: task.length]
            if rng.random() < 0.5:
                copies = max(2, min(int(rng.integers(3, 9)), 200 // task.length))
                yield np.tile(sequence, copies)
            else:
                pieces = np.array_split(sequence, max(2, task.length // 5))
                again = [pieces[i] for i in rng.integers(len(pieces), size=200 // task.length * len(pieces))]
                yield np.concatenate(again)[:200]


def _encoder() -> Any:
    made = tokenizer()
    return lambda text: np.array(made.backend_tokenizer.encode(text).ids, np.int64)


# Tokenizer


def _train_tokenizer() -> None:
    """Byte-level BPE on a sample of every source that is text; digits are tokens by themselves."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(_sample(), trainer)
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=START,
        eos_token=START,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, END],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(TOKENIZER)


def _sample(characters: int = 6_000_000) -> Iterator[str]:
    for number, (name, share) in enumerate(SAMPLED.items()):
        rng = np.random.default_rng((SEED + 2, number))
        left = characters * share
        if name in TEXTS:
            texts = TEXTS[name]().train
            documents: Iterator[str] = (texts[i] for i in rng.permutation(len(texts)))
        elif name in WRITTEN:
            documents = WRITTEN[name](rng)
        else:
            continue
        for text in documents:
            yield text
            left -= len(text)
            if left < 0:
                break


def _digest() -> str:
    """Of what the rows depend on: these files and the tokenizer."""
    tokenizer()
    digest = hashlib.sha256()
    for file in (Path(__file__), *(Path(__file__).with_name(f"{name}.py") for name in ("texts", "templates"))):
        digest.update(file.read_bytes())
    digest.update((TOKENIZER / "tokenizer.json").read_bytes())
    return digest.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=12_000)
    rows = stream(parser.parse_args().rows)
    made = tokenizer()
    json.dump({"rows": rows.shape, "sha256": hashlib.sha256(rows.tobytes()).hexdigest()}, sys.stdout)
    for row in rows[:: len(rows) // 8]:
        print("\n" + "-" * 100 + "\n" + made.decode(row.tolist()))


if __name__ == "__main__":
    main()
