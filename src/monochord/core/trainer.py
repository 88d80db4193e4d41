"""Any objective inside Hugging Face's `Trainer`, or a trainer built on it such as TRL's `SFTTrainer`."""

from __future__ import annotations

from typing import Any

from torch import nn

from monochord.core.objective import Objective, Step


class ObjectiveMixin:
    """Mix in before a trainer: `class MyTrainer(ObjectiveMixin, Trainer)`; takes `objective` beside its
    arguments.

    Means are over the global batch: gradient accumulation and processes included. Set
    `remove_unused_columns=False` for objectives that read columns the model does not take.
    """

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any) -> None:
        if objective.streams or not objective.differentiable:
            raise ValueError(f"{objective.name} needs monochord's own fit: it has further streams, or no gradient")
        super().__init__(*args, **kwargs)
        self.objective = objective
        self.compute_loss_func = self.compute_loss  # tells the trainer that losses are scaled for accumulation
        self._step, self._part = Step(), 0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next step, whose targets are counted before the first forward."""
        samples, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        from monochord.core.fit import count_targets

        self._step, self._part = Step(trainer.state.global_step, seed=trainer.args.seed), 0
        self._step.counts = count_targets(self.objective, samples, self._step, trainer.accelerator)
        return samples, items

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss: of a share of the global batch in training, of the batch alone in
        evaluation.
        """
        if model.training:
            step = self._step.part(self._part)
            self._part += 1
        else:
            step = Step()
        loss = self.objective(model, inputs, step).total
        return (loss, step.forward(model, inputs)) if return_outputs else loss


def objective_trainer(base: type | None = None) -> Any:
    """`Trainer`, or the trainer `base`, as a class that takes `objective=`.

    objective_trainer(SFTTrainer)(model=model, objective=NextToken() + 0.1 * KLAnchor(tuned), ...)
    """
    if base is None:
        from transformers import Trainer

        base = Trainer
    return type(f"Objective{base.__name__}", (ObjectiveMixin, base), {})
