"""The LightningModules: the supervised stage and GRPO-λ."""

from modules.grpo_lambda import GRPOLambdaModule
from modules.sft import SFTModule

__all__ = ["GRPOLambdaModule", "SFTModule"]
