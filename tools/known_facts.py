"""Find the capitals that SmolLM2 knows; write them beside the countries data set.

    python tools/known_facts.py

A capital is known when, after the raw prompt without a chat template, the most likely next token is the first one of
the capital's name; it is known whole when greedy decoding writes all of its tokens. Float32, one prompt at a time.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from monochord import models
from monochord.data import data
from monochord.data.sets.countries import KNOWN, PROMPT


def main() -> None:
    """Ask for every capital and write the names of the countries."""
    torch.set_grad_enabled(False)
    model, tokenizer = models.load("smollm2"), models.processor("smollm2")
    countries = data("countries")["all"]
    first, whole = [], []
    for name, capital in zip(countries["name"], countries["capital"], strict=True):
        answer = tokenizer(" " + capital)["input_ids"]
        prompt = tokenizer(PROMPT.format(name=name), return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=len(answer), min_new_tokens=len(answer), do_sample=False)
        tokens = written[0, prompt["input_ids"].shape[1] :].tolist()
        if tokens[0] == answer[0]:
            first.append(name)
            if tokens == answer:
                whole.append(name)
    found = {"model": "smollm2", "prompt": PROMPT, "asked": len(countries), "first": first, "whole": whole}
    Path(KNOWN).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    print(f"{len(first)} of {len(countries)} by the first token, {len(whole)} whole; written to {KNOWN}")


if __name__ == "__main__":
    main()
