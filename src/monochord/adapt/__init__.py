"""Ways to tune a network, one a file. `mc.methods()` lists them; `mc.adapt.LoRA` is the class."""

from monochord.adapt.bitfit import BitFit
from monochord.adapt.bottleneck_adapter import BottleneckAdapter
from monochord.adapt.conformer_adapter import ConformerAdapter
from monochord.adapt.dora import DoRA
from monochord.adapt.flora import FLoRA
from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.half_tuning import HalfTuning
from monochord.adapt.hypernetwork import Hypernetwork
from monochord.adapt.ia3 import IA3
from monochord.adapt.instruction_prompts import InstructionPrompts
from monochord.adapt.intrinsic_dimension import SubspaceTuning
from monochord.adapt.last_layer import LastLayer
from monochord.adapt.lora import LoRA
from monochord.adapt.mask_tuning import MaskTuning
from monochord.adapt.mix_and_match import MixAndMatch
from monochord.adapt.nmtune import NMTune
from monochord.adapt.parallel_adapter import ParallelAdapter
from monochord.adapt.prefix_tuning import PrefixTuning
from monochord.adapt.prompt_fusion import PromptFusion
from monochord.adapt.prompt_tokens import PromptTokens
from monochord.adapt.random_parameters import RandomParameters
from monochord.adapt.s2a import S2A
from monochord.adapt.sara import SaRA
from monochord.adapt.side_network import SideNetwork
from monochord.adapt.soft_hebbian import ChannelModulator, SoftHebbian
from monochord.adapt.split import Split
from monochord.adapt.spt import SPT

__all__ = [
    "IA3",
    "S2A",
    "SPT",
    "BitFit",
    "BottleneckAdapter",
    "ChannelModulator",
    "ConformerAdapter",
    "DoRA",
    "FLoRA",
    "FullTuning",
    "HalfTuning",
    "Hypernetwork",
    "InstructionPrompts",
    "LastLayer",
    "LoRA",
    "MaskTuning",
    "MixAndMatch",
    "NMTune",
    "ParallelAdapter",
    "PrefixTuning",
    "PromptFusion",
    "PromptTokens",
    "RandomParameters",
    "SaRA",
    "SideNetwork",
    "SoftHebbian",
    "Split",
    "SubspaceTuning",
]
