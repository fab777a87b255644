"""Short seeded runs of every method, and the numbers of theirs that are kept under ``tests/golden/*.json``.

The policy is float64 throughout: its weights are drawn without a transcendental function, and GPT-2 is a model that
transformers computes in the dtype it has (LLaMA's norms and rotations are float32 whatever its weights are). In float32
the last digits differ between CPUs, and AdamW's first steps, which look at the sign of a gradient, carry such a digit
far; a tolerance that forgives it would forgive a wrong coefficient, too. Here torch's scalar and AVX-512 kernels agree
in every logged digit and to 2e-13 in the weights. That policies of other dtypes and architectures are computed
right is for other tests to show.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback

from app.algorithm.advantages import AdvantageSettings
from app.algorithm.objective import ObjectiveSettings
from app.data.sources import SyntheticSource
from app.engines.engine import SamplingSettings
from app.policy.models import NewTokenizerSettings, PolicySettings
from app.policy.optimizers import OptimizerSettings
from app.rollout.update_plan import UpdateSettings
from datamodules import SFTDataModule
from modules import GRPOLambdaModule, SFTModule
from tests.running import fit, make_data, make_rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLDER = Path(__file__).parent
TOLERANCE = 1e-6  # relative; logged metrics are float32, which rounds by 6e-8
ITERATIONS = 2
UPDATES = 2  # a rollout: the second one meets ratios other than 1

METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"application": "none"},
    "grpo_kl": {"application": "none", "beta": 0.1, "reduction": "token"},
    "trace_recent": {"application": "trace", "style": "recent"},
    "trace_both": {"application": "trace", "style": "both"},
    "trace_both_normalised_kl": {"application": "trace", "style": "both", "normalise_trace": True, "beta": 0.1},
    "weight_recent": {"application": "weight", "style": "recent"},
    "weight_both": {"application": "weight", "style": "both"},
    "weight_forward_recent": {"application": "weight_forward", "style": "recent"},
    "weight_forward_both": {"application": "weight_forward", "style": "both"},
    "weight_reverse_both": {"application": "weight_reverse", "style": "both"},
    "terminal": {"application": "terminal"},
    "fipo": {"application": "fipo"},
    "gspo": {"application": "gspo", "clip_low": 0.02, "clip_high": 0.03},
    "cispo": {"application": "none", "surrogate": "cispo"},
    "grpo_entropy_kl": {"application": "none", "dual_clip": 1.05, "beta": 0.1, "kl_estimator": "k3_ratio"}
    | {"entropy_bonus": 0.05, "top_entropy_share": 0.5},
}
"""Name of a file → the objective's settings, over λ = 0.9 and lower clip 0.2, upper 0.28."""

METRICS = (
    "reward",
    "reward_std",
    "completions/mean_length",
    "entropy",
    "policy/loss",
    "kl",
    "policy/ratio_mean",
    "policy/ratio_max",
    "policy/approx_kl_old",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/dual_mean",
    "policy/entropy_loss",
    "grad_norm",
    "policy/lr",
    "loss",
    "mean_token_accuracy",
)
"""Those that a run logs are kept. Times are not, nor how sampler and trainer differ, which is rounding alone."""


def _policy() -> PolicySettings:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    config = {"model_type": "gpt2", **sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return PolicySettings(config=config, tokenizer=NewTokenizerSettings())


def _make_exact(policy: "PreTrainedModel") -> None:
    """Float64 weights that are the same to the last bit on every machine."""
    policy.double()
    generator = torch.Generator().manual_seed(3)
    for _, weight in sorted(policy.named_parameters()):
        if weight.dim() > 1:
            weight.data = torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 0.5


class _Learner(GRPOLambdaModule):
    def configure_model(self) -> None:
        super().configure_model()
        _make_exact(self.policy)
        if self.reference is not None:
            _make_exact(self.reference)


class _Imitator(SFTModule):
    def configure_model(self) -> None:
        super().configure_model()
        _make_exact(self.policy)


class _Recorder(Callback):
    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        logged = trainer.callback_metrics
        self.iterations.append({name: float(logged[name]) for name in METRICS if name in logged})


def run_method(name: str, iterations: int = ITERATIONS, **changes: Any) -> dict[str, Any]:
    """What is kept of ``iterations`` of 4 prompts × 4 completions of at most 24 tokens, in two mini-batches each.

    Args:
        name: one of :data:`METHODS`.
        changes: of its objective.
    """
    given = {"lam": 0.9, "clip_high": 0.28} | METHODS[name] | changes
    module = _Learner(
        policy=_policy(),
        objective=ObjectiveSettings(**given),
        optimizer=OptimizerSettings(lr=1e-3, warmup_iterations=2),
        advantages=AdvantageSettings(clamp_negative=0.5),
        updates=UpdateSettings(per_rollout=UPDATES, mini_batches=2),
        micro_batch_size=5,
    )
    rollouts = make_rollouts(sampling=SamplingSettings(max_new_tokens=24))
    return {"objective": given, **_record(module, make_data(iterations), rollouts)}


def run_warm_start() -> dict[str, Any]:
    """What is kept of four iterations of the supervised stage."""
    optimizer = OptimizerSettings(lr=3e-3, schedule="cosine", warmup_iterations=1)
    module = _Imitator(_policy(), optimizer, micro_batch_size=5)
    data = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=12, iterations=4, seed=5)
    return _record(module, data)


def _record(module: Any, data: Any, *callbacks: Callback) -> dict[str, Any]:
    recorder = _Recorder()
    with tempfile.TemporaryDirectory() as folder:
        fit(Path(folder), module, data, [*callbacks, recorder])
    weights = torch.cat([weight.detach().flatten() for _, weight in sorted(module.policy.named_parameters())])
    # Two numbers see any change: the second one those that keep the length, such as weights that change places.
    direction = torch.arange(len(weights), dtype=torch.float64).cos()
    final = {"norm": float(weights.norm()), "along_a_fixed_direction": float(weights @ direction)}
    return {"iterations": recorder.iterations, "weights": final}


def path(name: str) -> Path:
    """The file of a run."""
    return FOLDER / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    """What was kept of a run."""
    return json.loads(path(name).read_text())


def differences(kept: Any, found: Any, where: str = "") -> list[str]:
    """A line for each value that is not the one kept: ``iterations.0.grad_norm: kept 1.5, found 1.6``."""
    if isinstance(kept, Mapping) and isinstance(found, Mapping):
        names = [*kept, *(name for name in found if name not in kept)]
        return [line for name in names for line in differences(kept.get(name), found.get(name), f"{where}.{name}")]
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        return [
            line for i, pair in enumerate(zip(kept, found, strict=True)) for line in differences(*pair, f"{where}.{i}")
        ]
    numbers = isinstance(kept, float) and isinstance(found, float)
    same = abs(kept - found) <= TOLERANCE * max(abs(kept), abs(found)) if numbers else kept == found
    return [] if same else [f"{where.removeprefix('.')}: kept {kept}, found {found}"]
