"""The monitor looks at the same tokens each time, without padding and special ones; plateaus by hand."""

import pytest
import torch
import zoo

import monochord as mc
from monochord.core.history import Monitor
from monochord.objectives import NextToken
from monochord.read.dimension import Local
from monochord.read.dimension_monitor import LocalDimension, plateau


def batches(n=4):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (n, 4, 10), generator=g)
    mask = torch.ones_like(ids)
    mask[:, 1, 7:] = 0
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]


def test_states_are_those_of_real_tokens_that_are_not_special():
    model, given = zoo.build("llama"), batches()
    special = int(given[0]["input_ids"][0, 0])
    every = LocalDimension(given, tokens=10_000, local=Local(neighbours=20), special=(special,)).states(model)
    kept = [b["attention_mask"].bool() & (b["input_ids"] != special) for b in given]
    assert len(every) == sum(int(k.sum()) for k in kept)
    with torch.no_grad(), mc.capture(model, "blocks.1:out") as acts:
        model(**given[0])
    torch.testing.assert_close(every[: int(kept[0].sum())], acts["blocks.1:out"][kept[0]])


def test_the_same_tokens_every_time_and_others_by_another_seed():
    model = zoo.build("llama")
    first = LocalDimension(batches(), tokens=60, local=Local(neighbours=20))
    assert torch.equal(first.states(model), first.states(model)) and len(first.states(model)) == 60
    other = LocalDimension(batches(), tokens=60, local=Local(neighbours=20), seed=1)
    assert not torch.equal(first.states(model), other.states(model))
    assert first(model) == pytest.approx(float(first.each(model).mean()))


def test_it_watches_training():
    model, given = zoo.build("llama"), batches()
    watch = Monitor("dimension", LocalDimension(given, tokens=60, local=Local(neighbours=20)), every=2)
    history = mc.fit(model, given, NextToken(), steps=4, lr=1e-2, callbacks=[watch], progress=False)
    seen = history.monitors["dimension"]
    assert [step for step, _ in seen] == [0, 2, 4] and seen[0][1] != seen[2][1]


def test_plateaus():
    assert plateau([5, 4, 3, 2.99, 2.99, 2.99, 1]) == 2
    assert plateau([5, 4, 3, 2.99]) is None
    assert plateau([5, 6, 7, 8]) == 0
    assert plateau([5, 4, 4.1, 3, 3, 3, 3]) == 3
