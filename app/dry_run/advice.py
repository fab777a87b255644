"""What the dry run warns of, and what it refuses: only what settings and local files decide."""

from collections.abc import Iterator

from app.dry_run.plan import MEASURED_PROMPTS, Plan
from app.dry_run.sources import overlap_counts
from app.engines.engine import GenerationRequest
from app.errors import ConfigurationError
from app.policy.optimizers import check_optimizer
from app.policy.sharding.strategies import Sharding

LARGE = 100_000_000
"""Trainable parameters from which the usual ranges of learning rates hold; small models take much higher ones."""
USUAL_LR = {"rl": (1e-8, 2e-5), "sft": (1e-7, 2e-4), "adapters": (1e-7, 1e-3)}
CARD_GIB = 80
"""Memory of the largest card that is widespread."""


def check_plan(plan: Plan) -> None:
    """Refuses what would stop the run later.

    Raises:
        ConfigurationError: naming the key to change.
    """
    layout, settings = plan.layout, plan.parts.module.policy_settings
    Sharding(kind=layout.kind, precision=layout.precision).check_policy(settings)
    check_optimizer(plan.parts.module.optimizer_settings, sharded=layout.sharded)
    _check_context(plan)
    _check_monitor(plan)
    _check_engine(plan)
    _check_solutions(plan)


def warnings_of(plan: Plan, peak_bytes: float) -> list[str]:
    """One line for each thing that works and is probably not meant."""
    checks = (_length, _sampling, _learning_rate, _precision, _prompt, _evaluation, _nothing_saved, _overlap)
    found = [line for check in checks for line in check(plan)]
    if peak_bytes > CARD_GIB * 2**30:
        found.append(
            f"the estimate is over {CARD_GIB} GiB a rank: more ranks with a sharded strategy (configs/strategy/), "
            "smaller micro-batches or gradient_checkpointing"
        )
    return found


def _check_context(plan: Plan) -> None:
    context = plan.shape.context
    if context is not None and plan.prompt_tokens >= context:
        raise ConfigurationError(
            f"prompts of {plan.prompt_tokens} tokens leave no room in the model's context of {context}",
            key="data.prompt.max_prompt_tokens",
        )


def _check_monitor(plan: Plan) -> None:
    checkpoint, names = plan.parts.checkpoint, plan.parts.data.benchmark_names
    monitor = checkpoint.monitor if checkpoint is not None else None
    if monitor is None or not monitor.startswith("eval/"):
        return
    benchmark = monitor.split("/")[1]
    if benchmark not in names and not (names and benchmark == "average"):
        raise ConfigurationError(
            f"there is no benchmark {benchmark!r} in data.benchmarks; there are {', '.join(names) or 'none'}",
            key="checkpoint.monitor",
        )


def _check_engine(plan: Plan) -> None:
    """Asks vLLM's own check about one request at its longest."""
    from app.engines.vllm.engine import VLLMEngine
    from app.engines.vllm.settings import check_requests

    rollouts = plan.parts.rollouts
    engine = rollouts.engine.engine if rollouts is not None else None
    if rollouts is None or not isinstance(engine, VLLMEngine):
        return
    asked = engine.settings.max_model_len
    longest = asked or plan.shape.context or plan.row_tokens
    request = GenerationRequest([0] * plan.prompt_tokens, 1, 0, rollouts.sampling, ())
    check_requests([request], plan.shape.vocab, longest, asked is not None)


def _check_solutions(plan: Plan) -> None:
    """Makes examples of the problems at hand: a training set without solutions teaches nothing."""
    from app.data.sft import ExampleEncoder
    from datamodules import SFTDataModule

    data = plan.parts.data
    if not isinstance(data, SFTDataModule):
        return
    encoder = ExampleEncoder(plan.encoder, data.completion_template, data.solution_column)
    for problem in (plan.train.problems or [])[:MEASURED_PROMPTS]:
        encoder.completion(problem)


def _length(plan: Plan) -> Iterator[str]:
    rollouts, context = plan.parts.rollouts, plan.shape.context
    if rollouts is None or context is None:
        return
    together = plan.prompt_tokens + rollouts.sampling.max_new_tokens
    if together > context:
        yield (
            f"rollouts.sampling.max_new_tokens: prompt and completion may reach {together:,} tokens, the model's "
            f"context is {context:,}: completions end there, truncated"
        )


def _sampling(plan: Plan) -> Iterator[str]:
    rollouts = plan.parts.rollouts
    if rollouts is not None and rollouts.sampling.truncates and rollouts.mismatch.correction is None:
        yield (
            "rollouts.sampling: top_p, top_k or min_p draw from a narrower distribution than the trainer's; "
            "switch them off or set rollouts.mismatch.correction"
        )


def _learning_rate(plan: Plan) -> Iterator[str]:
    lr, counts = plan.parts.module.optimizer_settings.lr, plan.counts
    stage = "rl" if plan.parts.reinforcement is not None else "sft"
    low, high = USUAL_LR["adapters" if counts.trainable < counts.total else stage]
    if counts.total >= LARGE and not low <= lr <= high:
        yield f"model.optimizer.lr: {lr:g} is outside the usual {low:g} … {high:g} for a model of this size"


def _precision(plan: Plan) -> Iterator[str]:
    settings, lr = plan.parts.module.policy_settings, plan.parts.module.optimizer_settings.lr
    if settings.dtype != "float32" and settings.lora is None and lr < 1e-4:
        yield (
            f"policy.dtype: at lr {lr:g} most AdamW steps are smaller than the rounding of {settings.dtype} and are "
            "lost; leave it out and set trainer.precision to bf16-true or bf16-mixed"
        )


def _prompt(plan: Plan) -> Iterator[str]:
    if plan.encoder.style.chat == "if_available" and plan.tokenizer.chat_template is None:
        yield "data.prompt: the tokenizer has no chat template; prompts are the plain problems"


def _evaluation(plan: Plan) -> Iterator[str]:
    data, evaluation = plan.parts.data, plan.parts.evaluation
    if not data.benchmarks:
        yield "data.benchmarks: there are none, so that nothing measures the policy on problems it does not train on"
        return
    if evaluation is None:
        yield "evaluation: is not set, so that the benchmarks are not run"
        return
    interval = plan.parts.trainer.get("val_check_interval")
    if isinstance(interval, int) and interval > data.iterations:
        yield f"trainer.val_check_interval: {interval} is more than the run's {data.iterations} iterations"
    rollouts, longest = plan.parts.rollouts, evaluation.plan.sampling.max_new_tokens
    if rollouts is not None and longest < rollouts.sampling.max_new_tokens:
        yield (
            f"evaluation.sampling.max_new_tokens: {longest} is less than the {rollouts.sampling.max_new_tokens} of "
            "training: answers that training rewards are cut off"
        )


def _nothing_saved(plan: Plan) -> Iterator[str]:
    if plan.parts.checkpoint is None and plan.parts.export is None:
        yield "checkpoint and export are not set: nothing of the trained policy is kept"


def _overlap(plan: Plan) -> Iterator[str]:
    if plan.parts.data.overlap != "ignore":
        return
    for name, count in overlap_counts(plan.parts.data, plan.train).items():
        if count:
            yield f"data.overlap: the training set holds {count} problems of {name}, or 13 words of them; see drop"
