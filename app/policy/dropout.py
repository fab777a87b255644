"""A policy that is updated by its ratio to the policy that sampled must be that policy: its own dropout is off."""

import torch


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Sets every probability of dropping something in ``model`` to 0; its modes and its configuration stay.

    Models keep them in dropout layers and in numbers of their own, such as ``attention_dropout``. An adapter's dropout
    (``policy.lora.dropout``) is a choice of the user's for this very training and stays.
    """
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        for attribute, value in vars(module).items():
            is_probability = "drop" in attribute or isinstance(module, torch.nn.modules.dropout._DropoutNd)
            if isinstance(value, float) and is_probability:
                setattr(module, attribute, 0.0)
