import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from monochord.models import Classifier

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert():
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=32, intermediate_size=8, **SMALL)).eval()


def text_batch():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_text_features_are_the_mean_over_the_mask():
    model, batch = Classifier(bert(), 3), text_batch()
    hidden = model.backbone(**batch).last_hidden_state
    torch.testing.assert_close(model.embed(**batch)[1], hidden[1, :2].mean(0))
    assert torch.equal(Classifier(model.backbone, 3, pool="cls").embed(**batch), hidden[:, 0])


def test_image_features_mean_the_class_token_and_the_patches():
    torch.manual_seed(0)
    model = Classifier(Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **SMALL)).eval(), 2)
    images = torch.randn(2, 3, 28, 28)
    hidden = model.backbone(images).last_hidden_state
    expected = (hidden[:, 0] + hidden[:, 1:].mean(1)) / 2
    torch.testing.assert_close(model.embed(pixel_values=images), expected)
    assert model(pixel_values=images).logits.shape == (2, 2)


def test_a_language_model_is_used_without_its_unembedding():
    torch.manual_seed(0)
    language_model = LlamaForCausalLM(LlamaConfig(vocab_size=32, intermediate_size=8, **SMALL)).eval()
    model, batch = Classifier(language_model, 3), text_batch()
    hidden = language_model.model(**batch).last_hidden_state
    torch.testing.assert_close(model.embed(**batch)[0], hidden[0].mean(0))


def test_logits_and_loss_are_those_of_the_head():
    model, batch, labels = Classifier(bert(), 3), text_batch(), torch.tensor([2, 0])
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.logits, model.head(model.embed(**batch)))
    picked = output.logits.log_softmax(-1)[[0, 1], labels]
    torch.testing.assert_close(output.loss, -picked.mean())
    assert model(**batch).loss is None


def test_the_head_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = Classifier(bert(), 3, seed=5).head.weight
    torch.manual_seed(2)
    assert torch.equal(first, Classifier(bert(), 3, seed=5).head.weight)
    assert not torch.equal(first, Classifier(bert(), 3, seed=6).head.weight)


def test_the_head_has_the_type_of_the_backbone():
    model = Classifier(bert().to(torch.bfloat16), 3)
    assert model.head.weight.dtype == torch.bfloat16
    assert model(**text_batch(), labels=torch.tensor([0, 1])).loss.dtype == torch.float32


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="n_classes=1"):
        Classifier(bert(), 1)
    with pytest.raises(ValueError, match="use 'mean' or 'cls'"):
        Classifier(bert(), 2, pool="max")
    with pytest.raises(ValueError, match="Linear does not say how wide its output is"):
        Classifier(torch.nn.Linear(2, 2), 2)
    assert Classifier(torch.nn.Linear(2, 4), 3, width=4).head.weight.shape == (3, 4)


def test_it_trains_in_the_trainer_of_transformers(tmp_path):
    model = Classifier(bert(), 2)
    rows = [{"input_ids": [1 + i % 2] * 4, "attention_mask": [1] * 4, "labels": i % 2} for i in range(16)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=8,
        learning_rate=3e-2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
