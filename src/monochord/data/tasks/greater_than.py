"""Greater than: something that began in one year must end in a later one.

From "How does GPT-2 compute greater-than?: Interpreting mathematical abilities in a pre-trained language model",
April 30, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import PLACE, Problems, source

if TYPE_CHECKING:
    from torch import Tensor

EVENTS = ("war", "reign", "journey", "trial", "siege", "project", "marriage", "strike", "famine", "career", "treaty")


@dataclass(frozen=True)
class GreaterThan:
    """`The war lasted from the year 1732 to the year 17` must go on with a number above 32.

    `digits` is how many digits of the second year are left to say: 2, or 1 for tokenizers that know single digits
    only (then the two years share their decade). `response` is the least right continuation, `wrong` the one
    before; `candidates` gives all. The counterfactual begins in 01 (or in a year that ends in 0), after which
    nearly everything is right. Column `begin` is the number to be above; place: `begin`, its digits.
    """

    digits: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.digits not in (1, 2):
            raise DataError(f"digits={self.digits}: use 1 or 2")

    @property
    def chance(self) -> float:
        return 1 / 2  # of the probability above, where the begin is as likely low as high

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        events = np.array(EVENTS, object)[rng.integers(len(EVENTS), size=n)]
        top = 10**self.digits
        heads = rng.integers(11, 18, size=n) if self.digits == 2 else rng.integers(110, 180, size=n)
        begins = rng.integers(2, top - 2, size=n)
        low = 1 if self.digits == 2 else 0

        def written(starts: np.ndarray) -> list[str]:
            rows = zip(events, heads, starts, strict=True)
            return [f"The {e} lasted from the year {h}{b:0{self.digits}d} to the year {h}" for e, h, b in rows]

        prompts = written(begins)
        ends = np.array([prompt.index(" to the year") for prompt in prompts])
        return Problems(
            {
                "prompt": prompts,
                "response": [f"{b + 1:0{self.digits}d}" for b in begins],
                "wrong": [f"{b - 1:0{self.digits}d}" for b in begins],
                "counterfactual": written(np.full(n, low)),
                "begin": begins,
                PLACE + "begin": np.stack([ends - self.digits, ends], axis=1),
            }
        )


def candidates(problems: Problems, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids of all continuations "00" to "99" (or "0" to "9"), and which are right, (n, continuations), bool.

    Raises `DataError` when the tokenizer has no single token for them.
    """
    import torch

    digits = len(problems["response"][0])
    texts = [f"{k:0{digits}d}" for k in range(10**digits)]
    prompt = problems["prompt"][0]
    before = tokenizer(prompt)["input_ids"]
    after = [tokenizer(prompt + text)["input_ids"] for text in texts]
    if any(ids[:-1] != before for ids in after):
        raise DataError(f"this tokenizer has no token for each number of {digits} digits: use digits=1")
    begin = torch.from_numpy(np.asarray(problems["begin"]))
    return torch.tensor([ids[-1] for ids in after]), torch.arange(len(texts)) > begin[:, None]


ENTRIES = [source(GreaterThan, "greater-than", "years that must be later than others")]
