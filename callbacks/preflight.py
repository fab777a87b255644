"""The check of the first rollout: do engine and trainer speak of the same distribution?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from app.policy.packing import build
from app.rollout.engine import SamplingSettings
from app.rollout.experience import Experience
from app.rollout.preflight import ROWS, Hypothesis, policy_hypotheses, preflight

if TYPE_CHECKING:
    from modules.grpo_lambda import GRPOLambdaModule


def check_first_rollout(
    module: "GRPOLambdaModule", experience: Experience, sampling: SamplingSettings, limit: float
) -> None:
    """Stops a run whose engine and trainer disagree by more than ``limit`` nats a token.

    Raises:
        app.rollout.preflight.MismatchError: naming the likely cause.
    """
    rows = list(range(min(ROWS, len(experience.tokens))))
    tokens = experience.tokens.select(rows)
    width = tokens.completion_mask.shape[1]
    sampler, trainer = experience.sampler_log_probs[rows, :width], experience.old_log_probs[rows, :width]

    def hypotheses() -> Iterator[Hypothesis]:
        rollout = experience.rollout
        bare = [module.tokenizer(rollout.batch.problems[row // rollout.group_size].problem).input_ids for row in rows]
        other = build(bare, [rollout.rows[row].token_ids for row in rows], pad_id=0).to(module.device)
        yield from policy_hypotheses(module.policy, tokens, sampling, module.reference, other)

    preflight(sampler, trainer, tokens.completion_mask, hypotheses, limit)
