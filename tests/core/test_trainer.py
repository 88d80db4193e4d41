"""Objectives train inside Hugging Face's Trainer and TRL's SFTTrainer as they do in `fit`."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from monochord.core.fit import fit
from monochord.core.trainer import objective_trainer
from monochord.objectives import KLAnchor, NextToken


def gpt2(seed=0):
    torch.manual_seed(seed)
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16, **rates))


def rows(n=8):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 20, (n, 9), generator=g)
    labels = ids.masked_fill(torch.rand(n, 9, generator=g) < 0.5, -100)
    return [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)]


def arguments(folder, **options):
    fixed = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "optim": "adamw_torch", "report_to": "none"}
    fixed |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2, "logging_steps": 1}
    return {"output_dir": str(folder), **fixed, **options}


class InOrder:
    """The trainer's batches in the order of the rows."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_trainer_with_accumulation_equals_fit(tmp_path):
    model, other = gpt2(), gpt2()
    base = type("Ordered", (InOrder, Trainer), {})
    options = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3)
    objective = NextToken() + 0.5 * KLAnchor(gpt2(1).eval())
    trainer = objective_trainer(base)(
        model=model, args=TrainingArguments(**options), train_dataset=rows(12), objective=objective
    )
    trainer.train()
    parts = [torch.utils.data.default_collate(rows(12)[i : i + 2]) for i in range(0, 12, 2)]
    history = fit(other, parts, objective, steps=3, accumulate=2, lr=1e-2, progress=False, device="cpu")
    torch.testing.assert_close(model.state_dict(), other.state_dict(), atol=1e-5, rtol=1e-4)
    logged = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert logged == pytest.approx(history.losses, abs=2e-4)


def test_evaluation_is_of_the_batch_alone(tmp_path):
    model = gpt2()
    args = TrainingArguments(**arguments(tmp_path, per_device_eval_batch_size=8))
    trainer = objective_trainer()(model=model, args=args, eval_dataset=rows(8), objective=NextToken())
    batch = torch.utils.data.default_collate(rows(8))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(NextToken()(model, batch).total.item(), rel=1e-4)


def test_trl_sft_trainer(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {word: i for i, word in enumerate(["<pad>", "<end>", "a", "b", "c", "d"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    processor = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    data = Dataset.from_dict({"prompt": ["a b ", "b c "] * 4, "completion": ["c d", "d a"] * 4})
    model = gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = SFTConfig(**arguments(tmp_path, max_steps=4, per_device_train_batch_size=2, max_length=12))
    trainer = objective_trainer(SFTTrainer)(
        model=model, args=config, train_dataset=data, processing_class=processor, objective=NextToken()
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert not torch.equal(model.state_dict()["transformer.wte.weight"], before["transformer.wte.weight"])


def test_objectives_that_need_more_than_a_trainer_has_are_refused(tmp_path):
    class Streams(NextToken):
        streams = ("retain",)

    with pytest.raises(ValueError, match="streams needs monochord's own fit"):
        objective_trainer()(model=gpt2(), args=TrainingArguments(**arguments(tmp_path)), objective=Streams())
