"""The project's own mixture of experts: the ladder's 1M model with each MLP copied into 8 experts, top-2, trained on.

From "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", December 9, 2022; tools/zoo/moe.py.
"""

from __future__ import annotations

from monochord.models.shipped import language_net, trained

ENTRIES = trained(
    language_net("moe-4m", "MixtralForCausalLM", 3_675_264, "our own Mixtral, 4 layers of 128, 8 experts, top-2")
)
