"""The project's LightningDataModules, imported when first used: Lightning takes seconds to import."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.math_prompts import MathPromptDataModule
    from datamodules.sft_examples import SFTDataModule

__all__ = ["MathPromptDataModule", "SFTDataModule"]

_MODULES = {"MathPromptDataModule": "datamodules.math_prompts", "SFTDataModule": "datamodules.sft_examples"}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
