"""When rollouts are generated: one an iteration, several at once, or one ahead of the update.

The rollouts of the iterations to come wait here, and in checkpoints, until their iterations are done.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from app.data.problems import PromptBatch
from app.engines.engine import PolicyOwner, RolloutEngine
from app.engines.faults import EngineFailure, GuardedEngine
from app.engines.ranks import RolloutRanks
from app.errors import ConfigurationError, require
from app.rollout.ahead import RolloutAhead
from app.rollout.collection import RolloutCollector
from app.rollout.dynamic_sampling import DynamicSamplingSettings, replace_tied
from app.rollout.experience import Rollout, rollout_from_state, rollout_state
from app.stopping import STOP

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduleSettings:
    """When rollouts are generated.

    Attributes:
        every_n_iterations: prompts of this many iterations are generated at once, with the weights of the first.
        generate_ahead: the next rollout is generated while this one is learned from, with weights that are one
            update older; for an engine with weights and a process of its own.
    """

    every_n_iterations: int = 1
    generate_ahead: bool = False

    def __post_init__(self) -> None:
        key = "rollouts.schedule.every_n_iterations"
        require(self.every_n_iterations >= 1, "must be at least 1", self.every_n_iterations, key)

    @property
    def greatest_age(self) -> int:
        """How many iterations the weights that generate may be older than those that learn."""
        return self.every_n_iterations - 1 + self.generate_ahead

    def check_engine(self, engine: RolloutEngine) -> None:
        """Refuses to generate ahead with an engine that shares the policy's weights."""
        if self.generate_ahead and not getattr(engine, "concurrent", False):
            raise ConfigurationError(
                "needs an engine with weights and a process of its own, such as VLLMEngine with placement: separate",
                key="rollouts.schedule.generate_ahead",
            )


class Learner(PolicyOwner, Protocol):
    """The LightningModule that learns from rollouts."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase": ...

    @property
    def end_token_ids(self) -> tuple[int, ...]: ...


class PromptStream(Protocol):
    """The data module: a batch of prompts is a pure function of the iteration."""

    def train_batch(self, iteration: int) -> PromptBatch: ...

    def spare_batch(self, iteration: int, extra_round: int) -> PromptBatch: ...


class RolloutSchedule:
    """Hands out the rollout of each iteration, and generates it where it does not wait already.

    Args:
        engine: what generates.
        collector: turns prompts into graded completions through ``engine``.
        settings: when.
        dynamic_sampling: tied groups give way to further prompts; None switches it off.
    """

    def __init__(
        self,
        engine: GuardedEngine,
        collector: RolloutCollector,
        settings: ScheduleSettings,
        dynamic_sampling: DynamicSamplingSettings | None,
    ) -> None:
        self.settings = settings
        self.dynamic_sampling = dynamic_sampling
        self._engine = engine
        self._collector = collector
        # A thread must not restart the engine: see RolloutAhead.
        self._ahead_collector = collector.through(engine.engine)
        self._ahead = RolloutAhead()
        self._waiting: deque[Rollout] = deque()
        self._ranks: RolloutRanks | None = None
        self._engine_started = False

    def setup(self) -> None:
        """Makes the process group over which the ranks agree; collective."""
        self._ranks = RolloutRanks()

    def ready_engine(self, learner: Learner) -> RolloutEngine:
        """The engine, idle and started, with the policy's current weights."""
        self._take_rollout_ahead()
        if not self._engine_started:
            self._engine.start(learner)
            self._engine_started = True
        self._engine.sync(learner)
        return self._engine

    def next(self, learner: Learner, prompts: PromptStream, iteration: int, iterations: int) -> Rollout:
        """The rollout of ``iteration``, of ``iterations`` in all.

        It goes on waiting until :meth:`done`: a run that stops before saves it.
        """
        self._take_rollout_ahead()
        if not self._waiting:
            self._waiting.extend(self._generate(learner, prompts, iteration, iterations))
        rollout = self._waiting[0]
        if rollout.batch.iteration != iteration:
            raise RuntimeError(f"rollout of iteration {rollout.batch.iteration} in iteration {iteration}")
        if self.settings.generate_ahead and len(self._waiting) == 1:
            self._start_ahead(learner, prompts, iteration, iterations)
        return rollout

    def done(self) -> None:
        """The rollout that was handed out has been learned from."""
        self._waiting.popleft()

    def state(self) -> list[dict[str, Any]]:
        """What waits, for a checkpoint; one that is generated ahead is waited for."""
        self._waiting.extend(self._ahead.finish())
        return [rollout_state(rollout) for rollout in self._waiting]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """The inverse of :meth:`state`."""
        self._waiting = deque(rollout_from_state(each) for each in state)

    def close(self) -> bool:
        """Frees the engine; safe to call again. True where a rollout was given up in its middle."""
        self._engine.close()
        self._engine_started = False
        complete, lost = self._ahead.give_up()
        self._waiting.extend(complete)
        return lost

    def _take_rollout_ahead(self) -> None:
        """Waits for the rollout that is generated ahead, if there is one, unless a signal ends the run meanwhile."""
        if self.settings.generate_ahead:
            self._waiting.extend(STOP.together(lambda: self._ahead.finish(STOP.interruptible)))

    def _generate(self, learner: Learner, prompts: PromptStream, iteration: int, iterations: int) -> list[Rollout]:
        """Rollouts for ``iteration`` and, with a period, for those that follow."""
        synced = self._synchronise(learner)
        batches = self._batches(prompts, iteration, iterations)
        return self._collect(self._collector, learner, prompts, batches, iteration, synced)

    def _synchronise(self, learner: Learner) -> float:
        """Seconds that it took to have the policy's weights in the engine."""
        started = time.perf_counter()
        self.ready_engine(learner)
        return time.perf_counter() - started

    def _batches(self, prompts: PromptStream, iteration: int, iterations: int) -> list[PromptBatch]:
        last = min(iteration + self.settings.every_n_iterations, iterations)
        return [prompts.train_batch(index) for index in range(iteration, last)]

    def _collect(
        self,
        collector: RolloutCollector,
        learner: Learner,
        prompts: PromptStream,
        batches: list[PromptBatch],
        weights_iteration: int,
        sync_seconds: float,
    ) -> list[Rollout]:
        rollouts = self._collected(collector, learner, batches)
        if self.dynamic_sampling is not None:
            replace = partial(self._without_tied, collector, learner, prompts, self.dynamic_sampling)
            rollouts = [replace(rollout) for rollout in rollouts]
        for rollout in rollouts:
            rollout.weights_iteration = weights_iteration
            rollout.counts["rollouts/engine/restarts"] = float(self._engine.restarts)
            rollout.counts["rollouts/engine/sync_bytes"] = float(self._engine.last_sync_bytes)
        rollouts[0].seconds["sync"] = sync_seconds
        return rollouts

    def _collected(
        self, collector: RolloutCollector, learner: Learner, batches: list[PromptBatch], extra_round: int = 0
    ) -> list[Rollout]:
        """A reward function that fails on one rank fails on all."""
        assert self._ranks is not None, "setup comes first"
        collect = partial(collector.collect, batches, learner.tokenizer, learner.end_token_ids, extra_round)
        return self._ranks.on_every_rank(collect)

    def _without_tied(
        self,
        collector: RolloutCollector,
        learner: Learner,
        prompts: PromptStream,
        settings: DynamicSamplingSettings,
        rollout: Rollout,
    ) -> Rollout:
        def further(extra_round: int) -> Rollout:
            batch = prompts.spare_batch(rollout.batch.iteration, extra_round)
            return self._collected(collector, learner, [batch], extra_round)[0]

        assert self._ranks is not None, "setup comes first"
        return replace_tied(rollout, further, settings, self._ranks.any)

    def _start_ahead(self, learner: Learner, prompts: PromptStream, iteration: int, iterations: int) -> None:
        """Begins the next rollout with the weights that this iteration's update starts from."""
        batches = self._batches(prompts, iteration + 1, iterations)
        if not batches:
            return
        synced = self._synchronise(learner)

        def again(failure: EngineFailure) -> list[Rollout]:
            """In the main thread and after the update: the weights are those of the rollout's own iteration."""
            self._engine.restart(failure)
            log.warning("The rollout that was generated ahead is drawn again, with weights that are one update newer.")
            return self._collect(self._collector, learner, prompts, batches, batches[0].iteration, synced)

        collect = partial(self._collect, self._ahead_collector, learner, prompts, batches, iteration, synced)
        self._ahead.start(collect, again)
