"""The project's own Mamba-2 language model, of the size of the ladder's 1M model and trained on the same rows.

From "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
May 31, 2024; tools/zoo/mamba.py.
"""

from __future__ import annotations

from monochord.models.shipped import language_net, trained

ENTRIES = trained(language_net("mamba-1m", "Mamba2ForCausalLM", 919_440, "our own Mamba-2 with 6 layers of 128"))
