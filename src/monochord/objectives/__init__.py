"""What tuning can minimise: one objective or batch transform a file."""

from monochord.core.objective import Loss as Loss
from monochord.core.objective import Objective as Objective
from monochord.objectives.cross_entropy import CrossEntropy as CrossEntropy
from monochord.objectives.denoising import Denoising as Denoising
from monochord.objectives.entropy import Entropy as Entropy
from monochord.objectives.kl_anchor import KLAnchor as KLAnchor
from monochord.objectives.next_token import NextToken as NextToken
from monochord.objectives.prompt_classification import PromptClassification as PromptClassification
from monochord.objectives.response_only import ResponseOnly as ResponseOnly
