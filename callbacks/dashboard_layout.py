"""The Custom Scalars page of TensorBoard: which curves stand together, in five categories.

All runs of one stage lay out the page alike, so that TensorBoard, which puts the layouts of all runs together, shows
each chart once.
"""

from collections.abc import Sequence
from itertools import pairwise

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME

from app.algorithm.credit import every_variant, variant_name
from app.algorithm.settings import ObjectiveSettings
from app.algorithm.traces import STYLES

PARTS = ("sync", "generate", "grade", "log_probs", "train", "rest")
"""Of an iteration's time, in the order in which they happen."""
STACK = ("speed/split/0_start", *(f"speed/split/{number}_{part}" for number, part in enumerate(PARTS, start=1)))
"""Curves that bound the parts' shares, laid one on the other: the first is 0, the last is 1."""


def lines(title: str, *patterns: str) -> Chart:
    """A chart of all curves whose whole name one of the regular expressions matches."""
    return Chart(title=title, multiline=MultilineChartContent(tag=[f"{pattern}$" for pattern in patterns]))


def bands(title: str, *series: tuple[str, str, str]) -> Chart:
    """A chart of curves with an area around each: the names of (value, lower, upper)."""
    made = [MarginChartContent.Series(value=value, lower=lower, upper=upper) for value, lower, upper in series]
    return Chart(title=title, margin=MarginChartContent(series=made))


def rl_layout(benchmarks: Sequence[str], objective: ObjectiveSettings) -> Layout:
    """Of a run of GRPO-λ.

    Args:
        benchmarks: their names, in order.
        objective: the variant in use, whose charts come first among the traces'.
    """
    return Layout(
        category=[
            Category(title="Learning", chart=[lines("Reward", "reward", "rewards/.*/mean"), *_accuracies(benchmarks)]),
            Category(title="Policy", chart=_policy()),
            Category(title="Traces", chart=_traces(objective)),
            Category(title="Rollouts", chart=_rollouts()),
            Category(title="Speed", chart=_speed()),
        ]
    )


def sft_layout(benchmarks: Sequence[str]) -> Layout:
    """Of a run of the supervised stage."""
    learning = [
        lines("Loss", "loss"),
        lines("Share of tokens predicted right", "mean_token_accuracy"),
        *_accuracies(benchmarks),
    ]
    policy = [lines("Gradient norm before clipping", "grad_norm"), lines("Learning rate", "policy/lr")]
    return Layout(category=[Category(title="Learning", chart=learning), Category(title="Policy", chart=policy)])


def layout_summary(layout: Layout) -> Summary:
    """``layout`` as TensorBoard's plugin looks for it. TensorBoard's own function for this needs TensorFlow."""
    value = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto())
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME)
    held = Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=value, metadata=SummaryMetadata(plugin_data=plugin))
    return Summary(value=[held])


def _accuracies(benchmarks: Sequence[str]) -> list[Chart]:
    names = [*benchmarks, *["average"] * (len(benchmarks) > 1)]
    tags = [(name, f"eval/{name}/accuracy") for name in names]
    return [bands(f"Accuracy on {name}, 95 % interval", (tag, f"{tag}_low", f"{tag}_high")) for name, tag in tags]


def _policy() -> list[Chart]:
    return [
        lines("KL: to the reference; moved by this update", "kl", "policy/approx_kl_old"),
        lines("Entropy, nats a token", "entropy"),
        lines("Share of tokens whose gradient the clip takes away", "clip_ratio/.*_mean"),
        lines("Ratio that the clip sees: mean and largest", "policy/ratio_.*"),
        lines("Gradient norm before clipping", "grad_norm"),
        lines("Learning rate", "policy/lr"),
    ]


def _traces(objective: ObjectiveSettings) -> list[Chart]:
    own = objective.style if objective.application in ("trace", "weight", "weight_forward") else "none"
    styles = sorted(("none", *STYLES), key=lambda style: style != own)
    variants = sorted(every_variant(objective), key=lambda name: name != variant_name(objective))
    return [
        lines("Spread of z: root mean square of the log-ratio that a trace adds up", "traces/.*/z_std"),
        lines("Effective horizon, tokens", "traces/.*/effective_horizon"),
        *(
            lines(f"Gradient on the first 1/4, 1/2, 3/4: {each}", f"traces/{each}/gradient_share/.*")
            for each in variants
        ),
        *(lines(f"Outside the clip by quarter: {each}", f"traces/{each}/clip_fraction/quarter.") for each in styles),
        *(lines(f"Weight by quarter: {each}", f"traces/{each}/weight/quarter.") for each in styles if each != "none"),
    ]


def _rollouts() -> list[Chart]:
    length = "completions/mean_length"
    differences = ("sampling/sampling_logp_difference/.*", "sampling/kl")
    return [
        bands(
            "Length, tokens: mean, shortest to longest", (length, "completions/min_length", "completions/max_length")
        ),
        lines("Share cut off by the length limit, and not scored", "completions/clipped_ratio", "completions/unscored"),
        lines("Verdicts of the grader, shares", "rollouts/verdicts/.*"),
        lines("Share of tied groups", "frac_reward_zero_std", "rollouts/dynamic_sampling/.*"),
        lines("Staleness, iterations", "rollouts/staleness"),
        lines("Engine against trainer, nats a token", *differences),
        lines("Effective sample size, share", "sampling/.*_sample_size"),
    ]


def _speed() -> list[Chart]:
    stack = [(upper, lower, upper) for lower, upper in pairwise(STACK)]
    return [
        lines("Generated tokens per second", "speed/tokens/per_second"),
        bands("Where an iteration's time goes, stacked shares", *stack),
        lines("Seconds of an iteration and its parts", "speed/time/.*"),
        lines("Passes that train: share of padding, and saved", "policy/updates/(padding|shared_token)_share"),
        lines("Peak memory, GiB", "speed/memory_gib"),
    ]
