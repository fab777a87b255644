"""Everything that the dry run looks at, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.dry_run.layout import Layout, plan_layout
from app.dry_run.memory import Numbers, ParameterCounts, Shape, count_parameters
from app.dry_run.sources import Resolved, first_problems, resolve
from app.errors import ConfigurationError
from app.policy.head import is_plain_head
from modules.grpo_lambda import GRPOLambdaModule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from app.data.prompts import PromptEncoder
    from app.data.shown_prompt import ShownPrompt
    from app.policy.models import PolicySettings
    from callbacks import BenchmarkEvaluation, CreditAudit, HFExport, IterationCheckpoint, RolloutCallback
    from datamodules.base import ProblemDataModule
    from modules.policy_module import PolicyModule

MEASURED_PROMPTS = 256
"""Problems whose prompts are measured."""
ASSUMED_PROMPT_TOKENS = 256
"""Longest prompt where neither a limit nor a problem is at hand."""


@dataclass(frozen=True)
class Parts:
    """The objects that a configuration makes; nothing is loaded in them yet."""

    module: "PolicyModule"
    data: "ProblemDataModule"
    rollouts: "RolloutCallback | None"
    evaluation: "BenchmarkEvaluation | None"
    audit: "CreditAudit | None"
    checkpoint: "IterationCheckpoint | None"
    export: "HFExport | None"
    trainer: Mapping[str, Any]
    name: str

    @property
    def reinforcement(self) -> GRPOLambdaModule | None:
        """The module where it is that of RL."""
        return self.module if isinstance(self.module, GRPOLambdaModule) else None


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts.

    Attributes:
        parts: see there.
        layout: of its processes.
        config: of the model.
        tokenizer: of the policy.
        encoder: of the prompts.
        shape: of the model.
        counts: of its parameters.
        train: the training set.
        prompt_tokens: the longest prompt that is to be expected.
        prompt_source: what ``prompt_tokens`` rests on.
        first_prompt: of the training set, or that of a stand-in where its problems take a download.
        whole_logits: whether the output head, as far as one sees without running it, needs them for log-probs.
    """

    parts: Parts
    layout: Layout
    config: "PreTrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    encoder: "PromptEncoder"
    shape: Shape
    counts: ParameterCounts
    train: Resolved
    prompt_tokens: int
    prompt_source: str
    first_prompt: "ShownPrompt"
    whole_logits: bool

    @property
    def numbers(self) -> Numbers:
        """Sizes of activations."""
        dtype = self.parts.module.policy_settings.dtype
        return Numbers(self.layout.compute_bytes(dtype), self.layout.is_mixed(dtype))

    @property
    def completions_a_rank(self) -> int:
        """Completions of an iteration on one rank; 0 in the supervised stage."""
        rollouts, data = self.parts.rollouts, self.parts.data
        return 0 if rollouts is None else data.prompts_per_iteration // self.layout.ranks * rollouts.group_size

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest row: prompt and completion, or example."""
        if self.parts.rollouts is not None:
            longest = self.prompt_tokens + self.parts.rollouts.sampling.max_new_tokens
        else:
            longest = getattr(self.parts.data, "max_tokens", None) or 2 * self.prompt_tokens
        return min(longest, self.shape.context) if self.shape.context else longest


def make_plan(parts: Parts) -> Plan:
    """Reads configuration, tokenizer and local data; builds the model on the meta device.

    Raises:
        ConfigurationError: what a run would stop at.
    """
    from app.data.prompts import PromptEncoder

    if parts.data.train is None:
        raise ConfigurationError("fit needs a training set", key="data.train")
    layout, settings = plan_layout(parts.trainer, parts.module.policy_offload), parts.module.policy_settings
    policy, tokenizer = meta_policy(settings), parts.module.tokenizer
    _check_vocabulary(policy.config, tokenizer)
    parts.data.ask_as_trained(settings.path)
    encoder, train = PromptEncoder(parts.data.prompt, tokenizer), resolve(parts.data.train)
    prompt_tokens, source = _prompt_tokens(parts, encoder, train)
    return Plan(
        parts=parts,
        layout=layout,
        config=policy.config,
        tokenizer=tokenizer,
        encoder=encoder,
        shape=Shape.of(policy.config),
        counts=count_parameters(policy),
        train=train,
        prompt_tokens=prompt_tokens,
        prompt_source=source,
        first_prompt=_first_prompt(parts, encoder, policy, train),
        whole_logits=not is_plain_head(policy),
    )


def _first_prompt(parts: Parts, encoder: "PromptEncoder", policy: Any, train: Resolved) -> "ShownPrompt":
    from app.data.prompts import PLACEHOLDER
    from app.data.shown_prompt import show_prompt
    from app.policy.models import end_token_ids

    assert parts.data.train is not None
    problems = first_problems(parts.data.train, train, 1)
    ids = encoder.ids(problems[0].problem, problems[0].history) if problems else encoder.ids(PLACEHOLDER)
    ends = end_token_ids(encoder.tokenizer, policy, parts.module.policy_settings.end_tokens)
    return show_prompt(ids, encoder.tokenizer, ends, encoder.thinking)


def meta_policy(settings: "PolicySettings") -> Any:
    """The policy, adapters included, without memory for its parameters: of a folder, of the hub, new, or trained.

    Raises:
        ConfigurationError: as in :func:`app.policy.models.load_policy`, for all that does not lie in the weights.
    """
    from app.policy.checkpoints import is_checkpoint, trained_from
    from app.policy.lora import add_adapters
    from app.policy.models import check_path, empty_policy

    check_path(settings)
    if is_checkpoint(settings.path):
        return meta_policy(trained_from(settings))
    model = empty_policy(settings)
    return model if settings.lora is None else add_adapters(model, settings.lora, seed=0)


def _check_vocabulary(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    vocab = config.get_text_config().vocab_size
    if vocab < len(tokenizer):
        message = f"the model knows {vocab} tokens, its tokenizer has {len(tokenizer)}"
        raise ConfigurationError(message, key="policy.tokenizer")


def _prompt_tokens(parts: Parts, encoder: "PromptEncoder", train: Resolved) -> tuple[int, str]:
    """The longest prompt to be expected, and what that rests on."""
    assert parts.data.train is not None
    limit = parts.data.prompt.max_prompt_tokens
    problems = first_problems(parts.data.train, train, MEASURED_PROMPTS)
    longest = max((len(encoder.ids(problem.problem, problem.history)) for problem in problems), default=0)
    if problems and (limit is None or longest <= limit):
        seen = f"the longest of {len(problems)} problems has {longest}"
        return (limit, f"the limit; {seen}") if limit else (longest, seen)
    if limit is not None:
        return limit, "the limit, data.prompt.max_prompt_tokens"
    return ASSUMED_PROMPT_TOKENS, "assumed: data.prompt.max_prompt_tokens is not set"
