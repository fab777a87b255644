"""A module that looks at a few tokens of its policy before it trains: see :mod:`app.policy.probe`."""

from typing import TYPE_CHECKING, Any

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from app.errors import ConfigurationError
from app.policy.context import rope_switch
from app.policy.head import why_logits
from app.policy.probe import family
from app.policy.sharding.wrapping import inner_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Probed(LightningModule):
    """Refuses a policy whose log-probs would not be those of its rows, before anything is evaluated or trained."""

    def on_fit_start(self) -> None:
        """Raises ConfigurationError, on all ranks, what :meth:`probe` raised on one."""
        problem: ConfigurationError | None = None
        try:
            self.probe()
        except ConfigurationError as failure:
            problem = failure
        if problem := next(filter(None, self.gather_objects(problem)), None):
            raise problem
        if (reason := why_logits(self.policy)) is not None:
            rank_zero_warn(f"{family(self.policy)}: log-probs are made of whole logits, which take memory: {reason}")

    def probe(self) -> None:
        """Evaluates a few tokens in the ways that this stage does."""
        raise NotImplementedError

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every rank, in the order of ranks."""
        raise NotImplementedError


def report_context(policy: "PreTrainedModel") -> None:
    """Warns where rows end before the model's own limit."""
    if (length := rope_switch(inner_model(policy).config)) is not None:
        rank_zero_warn(
            f"rotary embeddings of {family(policy)} change for all rows of a pass as soon as one is longer than "
            f"{length} tokens (longrope): a row, prompt and completion, ends there"
        )
