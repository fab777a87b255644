"""A policy that is updated by its ratio to the policy that sampled must be that policy: its own noise is off."""

import torch


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Sets every probability of dropping something in ``model`` to 0, and ends the noise of routers; its configuration
    stays.

    Models keep probabilities in dropout layers and in numbers of their own, such as ``attention_dropout``. An adapter's
    dropout (``policy.lora.dropout``) is a choice of the user's for this very training and stays. Routers of a mixture
    of experts are left in eval mode, in which they choose as they do when sampling: some jitter what they see by
    ``jitter_noise`` (Mixtral), ``moe_jitter_eps`` (DBRX) or ``input_jitter_noise``, and Phi-MoE draws its experts,
    whatever that number is. The numbers cannot be set to 0 instead: Phi-MoE's ``router_jitter_noise`` is a threshold
    that counts in eval mode too.
    """
    for name, module in model.named_modules():
        if any("jitter" in attribute for attribute in vars(module)):
            module.training = False  # its own, not that of the modules in it
        if "lora_dropout" in name:
            continue
        for attribute, value in vars(module).items():
            is_probability = "drop" in attribute or isinstance(module, torch.nn.modules.dropout._DropoutNd)
            if isinstance(value, float) and is_probability:
                setattr(module, attribute, 0.0)


def has_adapter_dropout(model: torch.nn.Module) -> bool:
    """Whether adapters drop out: train mode is then meant to differ from eval mode."""
    return any(
        "lora_dropout" in name and isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0
        for name, module in model.named_modules()
    )
