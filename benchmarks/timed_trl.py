"""TRL's GRPOTrainer with a clock at the borders of an iteration's phases. Imports TRL: import this module late."""

import time
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer


class TimedGRPOTrainer(GRPOTrainer):
    """Keeps for every iteration its seconds by phase and its completion tokens.

    Attributes:
        iterations: one dictionary an optimiser step: ``generate``, ``log_probs``, ``train``, ``iteration`` in seconds,
            and ``tokens``.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.iterations: list[dict[str, float]] = []
        self._current = self._new()
        self.add_callback(_Iterations(self))

    @staticmethod
    def _new() -> dict[str, float]:
        return dict.fromkeys(("generate", "log_probs", "prepared", "trained", "tokens"), 0.0)

    def _generate(self, *arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        try:
            return super()._generate(*arguments, **settings)
        finally:
            self._current["generate"] += time.perf_counter() - started

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        try:
            return super()._get_per_token_logps_and_entropies(*arguments, **settings)
        finally:
            if not torch.is_grad_enabled():
                self._current["log_probs"] += time.perf_counter() - started

    def _generate_and_score_completions(self, *arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        output = super()._generate_and_score_completions(*arguments, **settings)
        self._current["prepared"] += time.perf_counter() - started
        self._current["tokens"] += float(output["completion_mask"].sum())
        return output

    def close_iteration(self, seconds: float) -> None:
        """Ends one; the update is what is left of it after its completions were drawn, scored and evaluated."""
        now = self._current
        kept = {name: now[name] for name in ("generate", "log_probs", "tokens")}
        self.iterations.append({**kept, "train": seconds - now["prepared"], "iteration": seconds})
        self._current = self._new()


class _Iterations(TrainerCallback):
    def __init__(self, trainer: TimedGRPOTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_log(self, *_: Any, **__: Any) -> None:
        """After the optimiser's step and what is logged of it; the line at the end of training is no iteration."""
        if len(self.trainer.iterations) < self.trainer.state.global_step:
            now = time.perf_counter()
            self.trainer.close_iteration(now - self.started)
            self.started = now
