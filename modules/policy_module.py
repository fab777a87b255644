"""What both stages share: a LightningModule that owns the policy, its tokenizer and its optimiser."""

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.precision import FSDPPrecision, Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities import rank_zero_warn

from app.errors import ConfigurationError, DivergenceError
from app.policy.checkpoints import PREFIX, check_trained, origin_of
from app.policy.fingerprints import source_fingerprint
from app.policy.finite import gradients_not_finite, weights_not_finite
from app.policy.head import output_head
from app.policy.lora import has_adapters, is_adapter
from app.policy.models import PolicySettings
from app.policy.optimizers import (
    OptimizerSettings,
    build_optimizer,
    check_optimizer,
    clip_gradients,
    group_settings,
    keep_settings,
    lr_factor,
    number_by_model,
    trained_parameters,
)
from app.policy.prompt_record import prompt_record
from app.policy.sharding.strategies import Kind, Sharding
from app.rollout.metric_sums import MetricSums
from app.storage.checkpoints import contents
from modules.checked_restore import CheckedRestore
from modules.iteration_metrics import IterationMetrics
from modules.probed import Probed, report_context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from app.data.problems import PromptBatch
    from app.data.shown_prompt import ShownPrompt

EARLIER = (
    "nothing can be sampled or learned from it. Go on from an earlier checkpoint, with a lower model.optimizer.lr or "
    "model.optimizer.max_grad_norm"
)
MAX_NOT_FINITE = 3
"""Optimiser steps in a row with a gradient that is not finite, after which nothing would get better."""


class PolicyModule(Probed):
    """Owns the policy. Weights are loaded in ``configure_model``, long after the configuration was checked.

    One Lightning batch is one iteration; optimisation is manual, for an iteration may take several steps.

    Args:
        policy: where the policy comes from.
        optimizer: its settings.
        seed: of a newly built policy's weights.
        policy_offload: parameters, gradients and optimiser states wait in host memory (ModelParallelStrategy alone).
    """

    policy: "PreTrainedModel"

    def __init__(
        self, policy: PolicySettings, optimizer: OptimizerSettings, seed: int = 0, policy_offload: bool = False
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_settings = policy
        self.optimizer_settings = optimizer
        self.seed = seed
        self.policy_offload = policy_offload
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.sharding = Sharding()
        self._stands_on: str | None = None  # fingerprint of frozen weights, on rank 0
        self._not_finite = 0  # optimiser steps in a row that were left out

    def setup(self, stage: str) -> None:
        """Reads from the trainer how the policy is to lie on the ranks, and sees to it that it is asked as trained."""
        self.trainer.datamodule.ask_as_trained(self.policy_settings.path)
        IterationMetrics.install(self.trainer)
        self.trainer._checkpoint_connector = CheckedRestore(self.trainer)
        strategy = self.trainer.strategy
        self.sharding = Sharding(
            kind=_kind(strategy),
            device=strategy.root_device,
            precision=self.trainer.precision,
            fsdp_options=_fsdp_options(strategy),
            offload=self.policy_offload,
        )
        self.sharding.check_backend()
        self.sharding.check_policy(self.policy_settings)
        _check_mesh(strategy)
        if self.trainer.is_global_zero and self.has_frozen_weights:
            self._stands_on = source_fingerprint(self.policy_settings, self.seed)
        check_optimizer(self.optimizer_settings, sharded=self.sharding.sharded)
        # Lightning's own plugins would turn the master weights into bfloat16, or run traces and loss in it.
        strategy.precision_plugin = FSDPPrecision("32-true") if isinstance(strategy, FSDPStrategy) else Precision()

    @property
    def has_frozen_weights(self) -> bool:
        """Whether the run needs weights that no checkpoint holds: those that adapters lie around."""
        return origin_of(self.policy_settings).lora is not None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Loaded at its first use: the data module needs it before the weights are there."""
        if self._tokenizer is None:
            from app.policy.models import load_tokenizer

            self._tokenizer = load_tokenizer(self.policy_settings)
        return self._tokenizer

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        from app.policy.models import end_token_ids

        return end_token_ids(self.tokenizer, self.policy, self.policy_settings.end_tokens)

    def show_prompt(self, batch: "PromptBatch") -> "ShownPrompt":
        """The first prompt of ``batch``, to be looked at."""
        from app.data.shown_prompt import show_prompt

        return show_prompt(batch.prompt_ids[0], self.tokenizer, self.end_token_ids, batch.thinking)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the policy's products of matrices, and of the weights that an engine should hold: bfloat16 under
        precision bf16-mixed and bf16-true, whose parameters are float32, and otherwise the parameters' own."""
        return self.sharding.compute_dtype(self.policy)

    def to(self, *args: Any, **kwargs: Any) -> "PolicyModule":
        """As torch's, except that a policy in host memory stays there: strategies move whole modules to the device."""
        policy = self._modules.pop("policy") if self.sharding.offload and hasattr(self, "policy") else None
        try:
            return super().to(*args, **kwargs)
        finally:
            if policy is not None:
                self._modules["policy"] = policy

    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        self.policy = self.sharding.load_policy(self.policy_settings, self.seed)
        report_context(self.policy)
        if has_adapters(self.policy):  # their base is where it came from: checkpoints hold the adapters alone
            self.register_state_dict_post_hook(_drop_frozen)
            self.strict_loading = False

    def configure_optimizers(self) -> dict[str, Any]:
        settings, trainer = self.optimizer_settings, self.trainer
        optimizer = build_optimizer(*trained_parameters(self.policy), settings)
        # The number of batches is known after the data loaders are, which Lightning makes after the optimisers.
        factor = lambda iteration: lr_factor(settings, iteration, trainer.num_training_batches)  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self._group_settings = group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimizer_step_clipped(self, sums: MetricSums) -> bool:
        """Clips the gradient's global norm, steps and clears; the norm before clipping goes to ``sums``.

        A gradient that is not finite would turn every weight into NaN: its step is left out, which is logged.

        Returns:
            Whether it was finite.

        Raises:
            DivergenceError: so were the ones before it.
        """
        optimizer = self.optimizers()
        norm = clip_gradients(self.policy, self.optimizer_settings.max_grad_norm)
        finite = bool(norm.isfinite())  # the norm of all ranks: they agree
        found = None
        if finite:
            optimizer.step()
            sums.add("grad_norm", norm)
        else:
            found = gradients_not_finite(self.policy, self.gather_objects)
        optimizer.zero_grad()
        sums.add("policy/updates/not_finite", float(not finite))
        sums.add("policy/updates/whole_logits", float(output_head(self.policy) is None))
        self._not_finite = 0 if finite else self._not_finite + 1
        if not finite:
            self._report_not_finite("its sum of squares overflows" if found is None else f"that of {found}")
        return finite

    def _report_not_finite(self, found: str) -> None:
        where = f"iteration {self.trainer.fit_loop.epoch_loop.batch_idx + 1}"
        self.check_weights(f"in {where}")
        if self._not_finite >= MAX_NOT_FINITE:
            raise DivergenceError(
                f"the gradient was not finite in {self._not_finite} optimiser steps in a row, up to {where}: {found}. "
                "Weights are those before them; lower model.optimizer.lr, or go on from an earlier checkpoint"
            )
        rank_zero_warn(f"{where}: the gradient is not finite ({found}); this optimiser step is left out")

    def check_weights(self, moment: str, advice: str = EARLIER) -> None:
        """Collective, and a reading of all weights.

        Args:
            moment: with which the message begins, such as "after iteration 3".
            advice: with which it ends.

        Raises:
            DivergenceError: some are not finite; names the first tensor.
        """
        found = weights_not_finite(self.policy, self.gather_objects)
        if found is not None:
            raise DivergenceError(f"{moment} the policy's weight {found}: {advice}")

    def accumulate(self, loss: torch.Tensor, last: bool) -> None:
        """Backward pass of one of a step's micro-batches, of which only the ``last`` one exchanges gradients under DDP.

        Sharded strategies exchange them each time: what it costs is less than the memory of whole gradients. FSDP with
        parameters in host memory does not: what it has exchanged there, the next exchange overwrites.
        """
        with contextlib.nullcontext() if last else self._without_exchange():
            self.manual_backward(loss)

    def _without_exchange(self) -> contextlib.AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):
            return strategy.block_backward_sync()
        if isinstance(strategy, FSDPStrategy) and strategy.cpu_offload.offload_params:
            return self.policy.no_sync()
        return contextlib.nullcontext()

    def advance_schedule(self) -> float:
        """Ends an iteration: steps the schedule and returns the learning rate that the iteration ran at."""
        schedule = self.lr_schedulers()
        lr = schedule.get_last_lr()[0]
        schedule.step()
        return lr

    def wait_for_device(self) -> None:
        """Waits for work that is queued on a GPU: a clock that is read now shows what it took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of ``value`` over all ranks, on each of them."""
        return self.trainer.strategy.reduce(value.clone(), reduce_op="sum")

    def max_over_ranks(self, value: int) -> int:
        """The largest ``value`` on any rank."""
        if self.trainer.world_size == 1:
            return value
        return int(self.trainer.strategy.reduce(torch.tensor(value, device=self.device), reduce_op="max"))

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every rank, in the order of ranks."""
        if self.trainer.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The work is done by :class:`callbacks.BenchmarkEvaluation`, which sees the same batches."""

    def on_train_start(self) -> None:
        """transformers loads models in eval mode; activation checkpointing acts in train mode alone."""
        self.policy.train()
        keep_settings(self.lr_schedulers(), self._group_settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to resume what is of another stage, optimiser or policy."""
        if self.trainer.state.fn == "fit":
            self._check_origin(checkpoint, "stage", type(self).__name__, "model.class_path")
            self._check_origin(checkpoint, "optimizer", self.optimizer_settings.name, "model.optimizer.name")
        self._check_adapters(checkpoint)
        self._check_frozen(checkpoint)
        if self.sharding.kind in ("single", "ddp"):
            state = checkpoint["state_dict"]
            weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
            check_trained(weights, self.policy, "the checkpoint", key="ckpt_path")

    @staticmethod
    def _check_origin(checkpoint: dict[str, Any], what: str, own: str, key: str) -> None:
        saved = checkpoint.get(what, own)  # which earlier versions did not save
        if saved != own:
            raise ConfigurationError(
                f"is {own}, but the checkpoint to resume from was made with {saved}: to start from its weights give "
                "it as model.policy.path",
                key=key,
            )

    def _check_adapters(self, checkpoint: dict[str, Any]) -> None:
        """What does not fit would be left out without a word."""
        saved, own = (
            settings and settings.get("lora")
            for settings in (checkpoint.get("policy_settings"), asdict(self.policy_settings))
        )
        shapes = [lora and {name: lora[name] for name in ("r", "alpha", "target_modules")} for lora in (saved, own)]
        if shapes[0] != shapes[1]:
            raise ConfigurationError(
                f"is {shapes[1]}, but the checkpoint to resume from was trained with {shapes[0]}",
                key="model.policy.lora",
            )

    def _check_frozen(self, checkpoint: dict[str, Any]) -> None:
        """Collective. Refuses to go on with other frozen weights than the run had so far: it would be another run."""
        saved, own = checkpoint.get("stands_on"), self._stands_on
        if self.trainer.strategy.broadcast(None not in (saved, own) and saved != own):
            what = self.policy_settings.path or "what model.policy.config and seed_everything draw"
            raise ConfigurationError(
                f"the frozen weights (of the reference policy, or below adapters) come from it, and {what} is not what "
                "the run of the checkpoint began with: put that back, or begin anew from the checkpoint as "
                "model.policy.path",
                key="model.policy.path" if self.policy_settings.path else "model.policy.config",
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["policy_settings"] = asdict(self.policy_settings)
        checkpoint["policy_seed"], checkpoint["stands_on"] = self.seed, self._stands_on
        checkpoint["prompt"] = prompt_record(self.trainer.datamodule.prompt)
        checkpoint["stage"], checkpoint["optimizer"] = type(self).__name__, self.optimizer_settings.name
        if self.sharding.kind in ("single", "ddp") and checkpoint.get("optimizer_states"):
            optimizer = self.trainer.optimizers[0]
            checkpoint["optimizer_states"] = [number_by_model(checkpoint["optimizer_states"][0], optimizer, self)]
        checkpoint["contents"] = contents(checkpoint)  # last: of all that is saved


def _kind(strategy: Strategy) -> Kind:
    kinds: dict[type, Kind] = {
        ModelParallelStrategy: "fsdp2",
        FSDPStrategy: "fsdp",
        DDPStrategy: "ddp",
        SingleDeviceStrategy: "single",
    }
    found = next((kind for cls, kind in kinds.items() if isinstance(strategy, cls)), None)
    if found is None or isinstance(strategy, DeepSpeedStrategy):  # which is a DDPStrategy by descent
        raise ConfigurationError(
            f"{type(strategy).__name__} is not offered: use one of configs/strategy/", key="trainer.strategy"
        )
    return found


def _check_mesh(strategy: Strategy) -> None:
    """Refuses tensor parallelism. Lightning's default asks for it on each machine; layers are left whole here."""
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if strategy._tensor_parallel_size not in (1, strategy.num_processes):
        raise ConfigurationError(
            "tensor parallelism is not offered: leave it out, and parameters are split over all ranks",
            key="trainer.strategy.init_args.tensor_parallel_size",
        )


def _fsdp_options(strategy: Strategy) -> tuple[tuple[str, Any], ...]:
    """What ``trainer.strategy`` says about how FullyShardedDataParallel is to shard.

    Raises:
        ConfigurationError: it asks for what :mod:`app.policy.sharding.strategies` decides itself.
    """
    if not isinstance(strategy, FSDPStrategy):
        return ()
    decided = {
        "mixed_precision": (strategy.mixed_precision, "trainer.precision"),
        "auto_wrap_policy": (strategy.kwargs.get("auto_wrap_policy"), "the model's own layers"),
        "activation_checkpointing_policy": (
            strategy._activation_checkpointing_kwargs,
            "model.policy.gradient_checkpointing",
        ),
        "use_orig_params": (not strategy.kwargs.get("use_orig_params", True), "weight decay of matrices alone"),
    }
    for name, (given, instead) in decided.items():
        if given:
            raise ConfigurationError(f"leave it out: {instead} decides it", key=f"trainer.strategy.init_args.{name}")
    return (
        ("cpu_offload", strategy.cpu_offload),
        ("sharding_strategy", strategy.sharding_strategy),
        *strategy.kwargs.items(),
    )


def _drop_frozen(module: PolicyModule, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Takes out of a state dict whatever is not trained."""
    for name in [name for name in state if name.startswith(prefix) and not is_adapter(name)]:
        del state[name]
