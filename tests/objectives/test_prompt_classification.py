"""Label words at the place of the answer, of causal and masked models, with and without a gradient."""

import pytest
import torch
import zoo
from sklearn.metrics import f1_score
from torch.nn import functional as F

from monochord import testing
from monochord.core.fit import fit
from monochord.core.update import Gradient
from monochord.core.zeroth_order import ZerothOrder
from monochord.objectives.prompt_classification import PromptClassification, macro_f1

LABELS = torch.tensor([1, 0])


def batch_of(name, **more):
    ids = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": LABELS, **more}


def test_a_causal_model_answers_after_its_last_token():
    model, batch = zoo.build("llama").eval(), batch_of("llama")
    objective = PromptClassification((3, (9, 11)))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = torch.stack([logits[0, 6], logits[1, 3]])
    wanted = torch.stack([wanted[:, 3], wanted[:, [9, 11]].mean(-1)], -1)
    torch.testing.assert_close(objective.scores(logits, batch), wanted)
    torch.testing.assert_close(objective(model, batch).total, F.cross_entropy(wanted, LABELS))
    alone = {"input_ids": batch["input_ids"][1:, :4], "labels": LABELS[1:]}
    torch.testing.assert_close(objective.scores(model(alone["input_ids"]).logits, alone)[0], wanted[1])
    left = {**batch, "input_ids": batch["input_ids"].flip(1), "attention_mask": batch["attention_mask"].flip(1)}
    assert objective._places(logits, left).tolist() == [6, 6]
    testing.check_objective(objective, model, batch)


def test_a_masked_model_answers_where_the_mask_is():
    logits = torch.randn(2, 7, 60, generator=torch.Generator().manual_seed(1))
    batch = batch_of("bert")
    batch["input_ids"][0, 2] = batch["input_ids"][1, 1] = 4
    objective = PromptClassification((3, 9), mask_token=4)
    torch.testing.assert_close(objective.scores(logits, batch), torch.stack([logits[0, 2], logits[1, 1]])[:, [3, 9]])
    batch["input_ids"][1, 1] = 5
    with pytest.raises(ValueError, match="row 1 has no mask token 4"):
        objective.scores(logits, batch)


@pytest.mark.parametrize("measure", ["accuracy", "f1"])
def test_what_has_no_gradient_is_left_to_forward_passes(measure):
    model, batch = zoo.build("llama").eval(), batch_of("llama")
    objective = PromptClassification((3, 9), measure=measure)
    scores = objective.scores(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch)
    hit = scores.argmax(-1) == LABELS
    assert objective(model, batch).total in (-hit.float().mean(), -macro_f1(scores.argmax(-1), LABELS))
    with pytest.raises(ValueError, match="use ZerothOrder"):
        fit(model, [batch], objective, steps=1, update=Gradient(), progress=False)
    fit(model, [batch], objective, steps=2, update=ZerothOrder(1e-3), progress=False)
    assert not (2 * objective).differentiable


def test_macro_f1_is_that_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels, predicted = torch.randint(0, 3, (2, 9), generator=g)
        wanted = f1_score(labels, predicted, labels=labels.unique(), average="macro", zero_division=0)
        assert float(macro_f1(predicted, labels)) == pytest.approx(wanted, abs=1e-6)


def test_what_can_not_be_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        PromptClassification((3,))
    with pytest.raises(ValueError, match="measure='recall' is unknown"):
        PromptClassification((3, 4), measure="recall")
