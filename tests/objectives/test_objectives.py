"""The reference objectives against their formulas, on tiny models of each kind."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from monochord.core.objective import Step
from monochord.objectives import CrossEntropy, KLAnchor, NextToken, ResponseOnly


def gpt2(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16, **rates)).eval()


def tokens():
    ids = torch.randint(1, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_next_token_equals_the_loss_of_the_model():
    model, batch = gpt2(), tokens()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = model(**batch, labels=labels).loss
    torch.testing.assert_close(NextToken()(model, batch).total, expected)
    torch.testing.assert_close(NextToken()(model, {**batch, "labels": labels}).total, expected)
    assert NextToken().count(batch) == (labels[:, 1:] != -100).sum()


def test_next_token_of_an_encoder_decoder_equals_the_loss_of_the_model():
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_ff": 16, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    batch = {**tokens(), "labels": torch.tensor([[4, 5, 6], [7, -100, -100]])}
    loss = NextToken()(model, batch)
    torch.testing.assert_close(loss.total, model(**batch).loss)


def test_parts_of_a_batch_sum_to_the_whole_whatever_their_sizes():
    model, batch = gpt2(), tokens()
    for objective in (NextToken(), KLAnchor(gpt2(1)), KLAnchor(gpt2(1), mask="all")):
        whole = objective(model, batch).total
        parts = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(2)]
        count = sum(objective.count(part) for part in parts)
        assert count == objective.count(batch)
        step = Step(counts={id(objective): count})
        torch.testing.assert_close(
            sum(objective(model, part, step.part(i)).total for i, part in enumerate(parts)), whole
        )


def test_cross_entropy_of_examples_and_of_tags():
    model, x = nn.Linear(4, 3), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, -100, 1])
    expected = F.cross_entropy(model(x), labels)
    for batch in ({"input": x, "labels": labels}, {"x": x, "label": labels}):
        torch.testing.assert_close(CrossEntropy()(model, batch).total, expected)
    tags = {"input": x.reshape(1, 5, 4), "labels": labels.reshape(1, 5)}
    torch.testing.assert_close(CrossEntropy()(model, tags).total, expected)
    smooth = F.cross_entropy(model(x), labels, label_smoothing=0.1)
    torch.testing.assert_close(CrossEntropy(0.1)(model, {"input": x, "labels": labels}).total, smooth)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("mask", ["labels", "all"])
def test_kl_anchor_equals_the_divergence_by_hand(direction, mask):
    model, reference, batch = gpt2(0), gpt2(1), tokens()
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    batch["labels"][0, :4] = -100
    p, q = (
        F.softmax(m(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits, -1) for m in (reference, model)
    )
    if direction == "reverse":
        p, q = q, p
    kept = batch["labels"] != -100 if mask == "labels" else batch["attention_mask"] != 0
    divergence = (p * (p / q).log()).sum(-1)[:, :-1][kept[:, 1:]].mean()
    loss = KLAnchor(reference, 0.3, direction, mask)(model, batch)
    torch.testing.assert_close(loss.total, 0.3 * divergence)
    assert loss.terms["kl_anchor"] == pytest.approx(divergence.item(), abs=1e-6)


def test_kl_anchor_of_an_attachment_is_the_model_with_it_off_and_dropout_off():
    model, batch = gpt2(dropout=0.5), tokens()
    base = gpt2()
    shift = nn.Parameter(torch.ones(20))

    class Tuned:
        on = True

        @contextmanager
        def disabled(self):
            self.on = False
            yield
            self.on = True

    tuned = Tuned()
    model.lm_head.register_forward_hook(lambda m, i, o: o + shift * torch.arange(20) / 9 if tuned.on else o)
    anchored = KLAnchor(tuned)
    eval_loss = anchored(model, batch).total
    torch.testing.assert_close(eval_loss, KLAnchor(base)(model, batch).total)
    model.train()
    expected = KLAnchor(base)
    torch.manual_seed(3)
    one = anchored(model, batch).total
    torch.manual_seed(3)
    torch.testing.assert_close(one, expected(model, batch).total)
    one.backward()
    assert shift.grad.abs().sum() > 0 and model.training and tuned.on


def test_kl_anchor_of_a_classifier():
    model, reference = nn.Linear(4, 3), nn.Linear(4, 3)
    batch = {"input": torch.randn(5, 4), "labels": torch.tensor([0, 1, -100, 2, 0])}
    p, q = F.softmax(reference(batch["input"]), -1), F.softmax(model(batch["input"]), -1)
    rows = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(KLAnchor(reference, mask="all")(model, batch).total, rows.mean())
    torch.testing.assert_close(KLAnchor(reference)(model, batch).total, rows[batch["labels"] != -100].mean())


def test_the_anchor_and_the_loss_share_one_forward():
    model, calls = gpt2(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    (NextToken() + 0.1 * KLAnchor(gpt2(1)))(model, tokens())
    assert len(calls) == 1


def test_response_only_by_mask_and_by_tokens():
    ids = torch.tensor([[1, 8, 9, 2, 3, 7, 4, 8, 9, 5, 6], [8, 9, 2, 2, 2, 2, 2, 2, 2, 2, 2]])
    labels = ResponseOnly(opens=(8, 9), closes=(7,)).transform({"input_ids": ids}, torch.Generator())["labels"]
    assert labels.tolist() == [[-100, -100, -100, 2, 3, 7, -100, -100, -100, 5, 6], [-100, -100, *[2] * 9]]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 4:] = True
    model = gpt2()
    batch = {"input_ids": ids, "response_mask": mask}
    expected = model(input_ids=ids, labels=ids.masked_fill(~mask, -100)).loss
    torch.testing.assert_close(ResponseOnly()(NextToken())(model, batch).total, expected)
    with pytest.raises(ValueError, match="needs 'response_mask' in the batch"):
        ResponseOnly()(NextToken())(model, {"input_ids": ids})


def test_bad_options_are_one_clear_line():
    with pytest.raises(ValueError, match="'forward' or 'reverse', got 'both'"):
        KLAnchor(gpt2(), direction="both")
    with pytest.raises(ValueError, match="'labels' or 'all', got 'some'"):
        KLAnchor(gpt2(), mask="some")
    with pytest.raises(ValueError, match=r"reference must be what is attached .* got str"):
        KLAnchor("base")
