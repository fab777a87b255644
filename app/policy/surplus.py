"""Weights of which a model has only a part, as a configuration with fewer layers than were trained makes it."""

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from app.policy.sources import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_surplus(unused: Iterable[str], known: Collection[str], model: "PreTrainedModel", source: str) -> None:
    """Refuses stored tensors that the model would have if it were larger: of a layer, or an expert, beyond its last.

    Other tensors without a place (a vision tower, heads for further objectives) are none of a language model's, and
    passed over, as are those that the family itself leaves out.

    Args:
        unused: names of stored tensors that the model does not have.
        known: names of those that it has.
        model: the model.
        source: folder or hub id.

    Raises:
        ConfigurationError: there are such tensors.
    """
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    wanted = [name for name in unused if not any(pattern.search(name) for pattern in ignored)]
    prefixed = {name.removeprefix(f"{model.base_model_prefix}.") for name in known}  # as a bare model is stored
    if beyond := sorted(name for name in wanted if any(x in known or x in prefixed for x in _firsts(name))):
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        refuse(
            f"the weights in {source} hold {beyond[0]}{more}, for which config.json has no layer: the model would be "
            "another than was trained",
            "path",
        )


def _firsts(name: str) -> Iterable[str]:
    """The name with each of its indices set to the first one."""
    for index in re.finditer(r"(?<=\.)\d+(?=\.)", name):
        yield f"{name[: index.start()]}0{name[index.end() :]}"
