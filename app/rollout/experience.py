"""What a rollout leaves behind, and the tensors that one RL iteration learns from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch

from app.data.problems import Problem, PromptBatch
from app.engines.engine import Completion
from app.errors import ConfigurationError
from app.grading.thinking import thinking_from_state
from app.rollout.mismatch import CorrectionSettings, importance_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from app.policy.packing import TokenBatch
    from app.rollout.metric_sums import MetricSums
    from app.rollout.update_plan import UpdatePlan


@dataclass
class Rollout:
    """Graded completions of one iteration's prompts on this rank: plain lists, so that it can wait in a checkpoint.

    Attributes:
        batch: the P prompts.
        completions: P groups of G completions.
        texts: their P·G decoded texts, group by group.
        rewards: P·G total rewards that the update learns from, any penalty included; NaN where no reward function
            could score.
        reward_columns: for each reward function its P·G unweighted scores; NaN where it could not score.
        weights_iteration: the iteration whose policy weights generated it.
        generated_tokens: what it took to get these completions: their tokens and, under dynamic sampling, those of the
            groups that were given up.
        generated_completions: the same in completions.
        seconds: wall time by phase ("sync", "generate", "grade"), of all that was generated.
        verdicts: for each verdict reason of the grader its number among all that was generated.
        counts: further numbers worth logging (restarts, shares of dynamic sampling …).
    """

    batch: PromptBatch
    completions: list[list[Completion]]
    texts: list[str]
    rewards: list[float]
    reward_columns: dict[str, list[float]]
    weights_iteration: int
    generated_tokens: int
    generated_completions: int
    seconds: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    @property
    def group_size(self) -> int:
        """G, completions a prompt."""
        return len(self.completions[0])

    @property
    def rows(self) -> list[Completion]:
        """All P·G completions, group by group."""
        return [completion for group in self.completions for completion in group]


@dataclass
class Experience:
    """What :class:`modules.GRPOLambdaModule` learns from in one iteration. B = P·G rows, T completion tokens.

    Attributes:
        rollout: where it came from.
        tokens: prompts and completions, padded; its ``completion_mask`` is that of the real tokens.
        loss_mask: [B, T] the tokens that the loss counts (truncated completions may be masked out of it).
        rewards: [P, G] float32, NaN where no reward function could score.
        old_log_probs: [B, T] of the policy that the update starts from (π_old), evaluated by the trainer. Those of the
            rows in ``pending`` are 0 until the update's first step, whose forward pass gives them.
        ref_log_probs: [B, T] of the frozen reference, or None at β = 0.
        sampler_log_probs: [B, T] as the engine reported them.
        entropy: [B, T] of π_old, in nats; pending as ``old_log_probs``.
        temperature: of sampling; log-probs are taken at the same one.
        metrics: what the rollout already knows; the update adds to it and the module logs the whole.
        plan: which rows are trained on together.
        correction: how the loss is corrected for the engine's other log-probs, or None.
        importance_weights: [B, T] what that came to for the rows that were trained on, or None.
        pending: rows whose π_old the update's first step evaluates.
        when_evaluated: called once, when π_old is known of every row and nothing has been learned yet. Collective.
    """

    rollout: Rollout
    tokens: "TokenBatch"
    loss_mask: torch.Tensor
    rewards: torch.Tensor
    old_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor | None
    sampler_log_probs: torch.Tensor
    entropy: torch.Tensor
    temperature: float
    metrics: "MetricSums"
    plan: "UpdatePlan"
    correction: CorrectionSettings | None = None
    importance_weights: torch.Tensor | None = None
    pending: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    when_evaluated: Callable[[], None] = lambda: None

    @property
    def iteration(self) -> int:
        """The RL iteration, from 0."""
        return self.rollout.batch.iteration

    def take_old(self, rows: torch.Tensor, log_probs: torch.Tensor, entropy: torch.Tensor) -> None:
        """Keeps what the update's first step found of R ``rows``: [R, W] each, W at most T."""
        self.old_log_probs[rows, : log_probs.shape[1]] = log_probs
        self.entropy[rows, : entropy.shape[1]] = entropy

    def corrected(self, rows: torch.Tensor, width: int) -> torch.Tensor | None:
        """[R, width] importance weights of R ``rows``, kept in ``importance_weights``; None without a correction."""
        if self.correction is None:
            return None
        if self.importance_weights is None:
            self.importance_weights = torch.zeros_like(self.old_log_probs)
        sampler, old, mask = (
            each[rows, :width] for each in (self.sampler_log_probs, self.old_log_probs, self.loss_mask)
        )
        found = importance_weights(sampler, old, mask, self.correction)
        self.importance_weights[rows, :width] = found
        return found


def rollout_state(rollout: Rollout) -> dict[str, Any]:
    """``rollout`` as dictionaries, lists, strings and numbers, which any checkpoint may hold."""
    return asdict(rollout)


def rollout_from_state(state: dict[str, Any]) -> Rollout:
    """The inverse of :func:`rollout_state`.

    Raises:
        ConfigurationError: another version of this code, whose rewards and counts may mean something else, wrote it.
    """
    if state.keys() != {each.name for each in fields(Rollout)}:
        raise ConfigurationError(
            "the checkpoint holds waiting rollouts as another version of this code writes them: resume from one at "
            "which none were waiting",
            key="ckpt_path",
        )
    batch = dict(state["batch"])
    batch["problems"] = [Problem(**problem) for problem in batch["problems"]]
    batch["thinking"] = thinking_from_state(batch["thinking"])
    completions = [[Completion(**row) for row in group] for group in state["completions"]]
    return Rollout(**(state | {"batch": PromptBatch(**batch), "completions": completions}))


def pad_rollout(rollout: Rollout, tokenizer: "PreTrainedTokenizerBase", templated: bool = True) -> "TokenBatch":
    """The rollout's B = P·G rows as one padded batch; its mask comes from lengths, never from pad ids.

    Not ``templated``, the prompts are the bare problem texts: what an engine would see that lost the template.
    """
    from app.policy.packing import build

    own = rollout.batch.prompt_ids
    groups = own if templated else [tokenizer(each.problem).input_ids for each in rollout.batch.problems]
    prompts = [ids for ids in groups for _ in range(rollout.group_size)]
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return build(prompts, [row.token_ids for row in rollout.rows], pad_id)


def sampler_log_probs(rollout: Rollout, tokens: "TokenBatch") -> torch.Tensor:
    """[B, T] log-probs as the engine reported them, 0 on padding."""
    rows = [torch.tensor(row.log_probs) for row in rollout.rows]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded.to(tokens.completion_mask.device)
