"""What can only be checked of the parts together, before any model is loaded."""

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from app.cli.errors import nearest
from app.errors import ConfigurationError
from app.policy.models import check_path
from modules.grpo_lambda import GRPOLambdaModule

if TYPE_CHECKING:
    from callbacks import BenchmarkEvaluation, CreditAudit, RolloutCallback
    from datamodules.base import ProblemDataModule
    from modules.policy_module import PolicyModule


def check_parts(
    subcommand: str,
    module: "PolicyModule",
    data: "ProblemDataModule",
    rollouts: "RolloutCallback | None",
    evaluation: "BenchmarkEvaluation | None",
) -> None:
    """Refuses parts that do not fit together.

    Raises:
        ConfigurationError: naming the key to change.
    """
    check_path(module.policy_settings)
    for name in evaluation.plan.benchmarks if evaluation is not None else ():
        if name not in data.benchmark_names:
            message = f"no such benchmark in data.benchmarks{nearest(name, data.benchmark_names)}"
            raise ConfigurationError(message, key=f"evaluation.benchmarks.{name}")
    if subcommand == "validate" and evaluation is None:
        raise ConfigurationError("validate needs it: give at least `evaluation: {}`", key="evaluation")
    if subcommand == "validate" and not data.benchmark_names:
        raise ConfigurationError("validate needs at least one benchmark", key="data.benchmarks")
    if subcommand == "fit" and evaluation is None and data.benchmark_names and data.overlap == "ignore":
        rank_zero_warn("data.benchmarks are not evaluated: give `evaluation: {}` to have them run beside training")
    if subcommand == "fit" and isinstance(module, GRPOLambdaModule):
        _check_rl(module, data, rollouts)
    elif subcommand == "fit" and rollouts is not None:
        raise ConfigurationError(f"{type(module).__name__} learns from examples: leave rollouts out", key="rollouts")


def check_audit(
    subcommand: str, audit: "CreditAudit", data: "ProblemDataModule", rollouts: "RolloutCallback | None"
) -> None:
    """Refuses an audit of what is not there.

    Raises:
        ConfigurationError: naming the key to change.
    """
    if subcommand == "validate":
        audit.audited_benchmark(data.benchmark_names)
    elif rollouts is None:
        raise ConfigurationError("needs the rollouts of GRPO-λ: leave it out of the supervised stage", key="audit")
    elif hasattr(data, "prompts_per_iteration"):
        audit.check_problems(data.prompts_per_iteration, data.iterations)


def _check_rl(module: GRPOLambdaModule, data: "ProblemDataModule", rollouts: "RolloutCallback | None") -> None:
    if rollouts is None:
        raise ConfigurationError("GRPOLambdaModule learns from rollouts: give at least `rollouts: {}`", key="rollouts")
    prompts = getattr(data, "prompts_per_iteration", None)
    if prompts is None:
        raise ConfigurationError("GRPOLambdaModule needs prompts: use MathPromptDataModule", key="data.class_path")
    if prompts % module.updates.mini_batches:
        raise ConfigurationError(
            f"{module.updates.mini_batches} does not divide the {prompts} prompts of an iteration "
            "(data.prompts_per_iteration): groups stay whole",
            key="model.updates.mini_batches",
        )
    longest, allowed = rollouts.sampling.max_new_tokens, module.objective.max_tokens
    if module.objective.reduction == "constant" and allowed is not None and longest > allowed:
        raise ConfigurationError(
            f"is {allowed}, less than rollouts.sampling.max_new_tokens, {longest}", key="model.objective.max_tokens"
        )
    _warn_rl(module, rollouts)


def _warn_rl(module: GRPOLambdaModule, rollouts: "RolloutCallback") -> None:
    """What works, and is probably not meant."""
    age = rollouts.schedule.settings.greatest_age
    if age and rollouts.mismatch.correction is None:
        rank_zero_warn(
            f"samples are up to {age} iteration{'s' * (age > 1)} older than the policy that learns from them. Ratio "
            "and clip do not see it, for they start from π_old, the policy before the update: watch "
            "rollouts/staleness and sampling/*, or set rollouts.mismatch.correction"
        )
    if module.objective.beta > 0 and module.objective.kl_estimator == "k1":
        rank_zero_warn(
            "model.objective.kl_estimator: the gradient of k1 is 0 on average, so that beta pulls nothing to the "
            "reference policy; k2 and k3 do"
        )
