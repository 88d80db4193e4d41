"""Texts and chats as padded token batches; each row is tokenised once, shortly before it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from monochord.data.dataset import DataError, Split

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


class Tokens:
    """The rows of a split as token ids, at most `max_length` long.

    Texts are cut at their end. Of a chat the response is cut at its end and the prompt at its beginning, so that
    at least a quarter of the room is left for the response.
    """

    def __init__(self, split: Split, tokenizer: Any, max_length: int) -> None:
        self.split, self.max_length = split, max_length
        self.is_chat = "prompt" in split and "response" in split
        self.labels = np.asarray(split["label"]) if "label" in split else None
        self.ready = "input_ids" in split
        if not self.ready and not self.is_chat and "text" not in split:
            raise DataError(f"no column text, prompt and response, or input_ids among {', '.join(split.columns)}")
        if not self.ready and not callable(tokenizer):
            raise DataError("texts need a tokenizer: pass processor=monochord.models.processor(name)")
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor that has several parts
        self.tokenizer = tokenizer
        self.padding = getattr(tokenizer, "pad_token_id", None) or 0
        self._ids: dict[int, np.ndarray] = {}
        self._prompt_lengths: dict[int, int] = {}

    def batch(
        self, rows: np.ndarray, ahead: np.ndarray, responses_only: bool, response_mask: bool
    ) -> dict[str, Tensor]:
        """The rows padded at their end to the longest; `ahead` are rows to tokenise along with them."""
        import torch

        if any(row not in self._ids for row in rows.tolist()):
            self._encode([row for row in ahead.tolist() if row not in self._ids])
        ids = [self._ids[row] for row in rows.tolist()]
        shape = len(ids), max(1, max(map(len, ids)))
        tokens = np.full(shape, self.padding, np.int64)
        kept = np.zeros(shape, np.int64)
        answers = np.zeros(shape, bool)
        for place, (row, values) in enumerate(zip(rows.tolist(), ids, strict=True)):
            tokens[place, : len(values)] = values
            kept[place, : len(values)] = 1
            answers[place, self._prompt_lengths.get(row, 0) : len(values)] = True
        batch = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(kept)}
        if self.labels is not None:
            return batch | {"labels": torch.from_numpy(self.labels[rows])}
        learned = answers if responses_only else kept.astype(bool)
        batch["labels"] = torch.from_numpy(np.where(learned, tokens, IGNORED))
        if response_mask:
            batch["response_mask"] = torch.from_numpy(answers)
        return batch

    def _encode(self, rows: list[int]) -> None:
        if self.ready:
            for row in rows:
                self._ids[row] = np.asarray(self.split["input_ids"][row], np.int32)[: self.max_length]
        elif self.is_chat:
            self._encode_chats(rows)
        else:
            texts = [self.split["text"][row] for row in rows]
            encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
            for row, values in zip(rows, encoded, strict=True):
                self._ids[row] = np.asarray(values, np.int32)

    def _encode_chats(self, rows: list[int]) -> None:
        pairs = [self._chat(self.split["prompt"][row], self.split["response"][row]) for row in rows]
        plain = {"add_special_tokens": False, "verbose": False}  # cut below, so no warning of their length
        prompts = self.tokenizer([prompt for prompt, _ in pairs], **plain)["input_ids"]
        responses = self.tokenizer([response for _, response in pairs], **plain)["input_ids"]
        for row, prompt, response in zip(rows, prompts, responses, strict=True):
            room = self.max_length - min(len(response), max(1, self.max_length // 4))
            prompt = prompt[-room:]
            values = np.asarray(prompt + response, np.int32)[: self.max_length]
            self._ids[row], self._prompt_lengths[row] = values, len(prompt)

    def _chat(self, prompt: str, response: str) -> tuple[str, str]:
        """Prompt and response as the model's chat template writes them, else with a line between and an end."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return prompt + "\n", response + (self.tokenizer.eos_token or "")
        turn = [{"role": "user", "content": prompt}]
        before = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        turn.append({"role": "assistant", "content": response})
        whole = self.tokenizer.apply_chat_template(turn, tokenize=False)
        if not whole.startswith(before):
            return prompt + "\n", response + (self.tokenizer.eos_token or "")
        return before, whole[len(before) :]
