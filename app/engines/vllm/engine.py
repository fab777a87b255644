"""Rollouts by vLLM: in the trainer's process, or in processes or on machines of their own."""

import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from app.engines.engine import Completion, GenerationRequest, PolicyOwner, RolloutEngine
from app.engines.faults import EngineFailure
from app.engines.ranks import RolloutRanks
from app.engines.vllm.colocated import Colocated
from app.engines.vllm.local import ADAPTER_RANKS, LocalEngineSettings
from app.engines.vllm.models import for_vllm
from app.engines.vllm.separate import SeparateEngines
from app.engines.vllm.settings import Adapters, Placement, VLLMSettings, check_requests, require_vllm
from app.engines.weight_names import checkpoint_weights, separable_adapters, tied_widths, transposed_names
from app.engines.weight_sync import SyncRecord, WeightSyncError
from app.errors import ConfigurationError
from app.policy.context import rope_switch
from app.policy.decoding import unknown_token_ids
from app.policy.lora import adapter_rank, has_adapters
from app.policy.sharding.merging import Weights, adapter_weights
from app.policy.sharding.wrapping import inner_model
from app.stopping import STOP
from app.storage.scratch import ScratchFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Backend = Colocated | SeparateEngines
T = TypeVar("T")
log = logging.getLogger(__name__)
LOADER_ERROR = re.compile(r"\b(Value|Key|Attribute|Type|Assertion|Index)Error: ")
"""What vLLM raises over names and shapes of weights, as an engine's failure words it."""


class VLLMEngine(RolloutEngine):
    """A :class:`app.engines.engine.RolloutEngine` on vLLM.

    Where a platform has no sleep mode or no CUDA graphs (a CPU), vLLM is asked and they are left out. With several
    ranks, ``start``, ``sync``, ``generate`` and ``close`` are called on all of them: a colocated engine lives on every
    rank, separate ones are driven by rank 0, which generates for all in one batch.

    A colocated engine generates in the thread that calls it and uses the process's random generators, which are put
    back afterwards: rollouts that overlap with training need a separate one, as does a limit on the time to answer.
    What concerns GPUs (sleep, CUDA graphs, weight transfer) follows vLLM 0.32's interface and is untested.

    Args:
        placement: "colocated": in the trainer's process, weights handed over in memory. "separate": in processes
            started here, or at ``address``.
        address: host:port of ``python -m app.engines.vllm.server``, for an engine on another machine.
        dtype: float32, bfloat16 or float16; "policy" is the one that the policy computes in (see trainer.precision).
        gpu_memory_share: of a GPU's memory, for the engine's weights and cache.
        kv_cache_gib: fixed size of the key-value cache instead; without a GPU 1 GiB where none is given.
        sleep_level: what a colocated engine gives back to training, where the platform can: 0 nothing; 1 keeps the
            weights in host memory; 2 drops them, and the next round of generation takes them from the policy again.
        tensor_parallel_size: GPUs of one separate engine.
        data_parallel_size: separate engines that share the requests, each of ``tensor_parallel_size`` GPUs.
        devices: the separate engines' GPUs by number among those that the trainer sees; by default the first ones.
        max_model_len: longest prompt and completion together; by default the model's own limit.
        max_sequences: completions decoded at once.
        prefix_caching: a prompt's keys and values are computed once for all its completions.
        verify_weights: compares fingerprints after every sync and stops where they differ.
        adapters: of a policy with LoRA. "apart": the engine takes the frozen weights once and then the adapters alone,
            which it computes beside them as the trainer does; "merged": all weights with the adapters in them, every
            time; "auto": apart on a GPU where vLLM can, else merged (on a CPU vLLM copies them for every token).
        start_timeout_s: for a separate engine to start.
        generate_timeout_s: for a separate engine to answer, after which it is taken to hang.
        seed: of vLLM's own generators; completions have seeds of their own.

    Attributes:
        last_sync_seconds: time of the last ``sync``, verification included.
        last_sync_bytes: that it handed over.
        start_seconds: time of the last ``start``.

    Raises:
        ConfigurationError: a setting is out of range, or vLLM is not installed.
    """

    def __init__(
        self,
        placement: Placement = "colocated",
        address: str | None = None,
        dtype: str = "policy",
        gpu_memory_share: float = 0.4,
        kv_cache_gib: float | None = None,
        sleep_level: int = 1,
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        devices: list[int] | None = None,
        max_model_len: int | None = None,
        max_sequences: int = 256,
        prefix_caching: bool = True,
        verify_weights: bool = True,
        adapters: Adapters = "auto",
        start_timeout_s: float = 600.0,
        generate_timeout_s: float = 1800.0,
        seed: int = 0,
    ) -> None:
        self.settings = VLLMSettings(
            placement=placement,
            address=address,
            dtype=dtype,
            gpu_memory_share=gpu_memory_share,
            kv_cache_gib=kv_cache_gib,
            sleep_level=sleep_level,
            tensor_parallel_size=tensor_parallel_size,
            data_parallel_size=data_parallel_size,
            devices=None if devices is None else tuple(devices),
            max_model_len=max_model_len,
            max_sequences=max_sequences,
            prefix_caching=prefix_caching,
            verify_weights=verify_weights,
            adapters=adapters,
            start_timeout_s=start_timeout_s,
            generate_timeout_s=generate_timeout_s,
            seed=seed,
        )
        if address is None:
            require_vllm()
        self.last_sync_seconds = 0.0
        self.last_sync_bytes = 0
        self.start_seconds = 0.0
        self._backend: Backend | None = None
        self._dtype = torch.float32
        self._vocab_size = 0
        self._unknown: tuple[int, ...] = ()
        self._family = ""
        self._longest: int | None = None
        self._transposed: frozenset[str] = frozenset()
        self._absent: frozenset[str] | None = None  # not asked for yet
        self._max_model_len = 0
        self._adapters: list[str] = []  # that the engine holds beside the weights, by name
        self._adapter_rank: int | None = None
        self._base_held = False
        self._module: PolicyOwner | None = None
        self._syncs = 0
        self._ranks: RolloutRanks | None = None

    def start(self, module: PolicyOwner) -> None:
        """Builds the engine from the policy's config, without weights.

        Raises:
            EngineFailure: "start".
            ConfigurationError: vLLM cannot run this model here.
        """
        self.close()
        started = time.perf_counter()
        self._ranks = self._ranks or RolloutRanks()
        model = inner_model(module.policy)
        self._dtype = self.settings.engine_dtype(module.compute_dtype)
        self._vocab_size = model.config.get_text_config().vocab_size
        self._unknown = unknown_token_ids(module.tokenizer, self._vocab_size)
        self._family = model.config.model_type
        self._longest = self._longest_row(rope_switch(model.config))
        self._absent, self._base_held = None, False
        wanted = self._wanted_adapters(module)
        self._adapter_rank = adapter_rank(module.policy) if wanted else None
        with ScratchFolder("vllm-model") as folder:
            write_model_files(model, module.tokenizer, folder)
            self._max_model_len = self._driven(lambda: self._open(folder, module.device))
        placed = bool(wanted) and self._driven(lambda: self._placed(wanted))
        self._adapters = wanted if placed else []
        self._check_adapters(module)
        self.start_seconds = time.perf_counter() - started

    def _wanted_adapters(self, module: PolicyOwner) -> list[str]:
        """Names of the adapters that the engine is to hold beside the weights, where it can."""
        how = self.settings.adapters
        if how == "merged" or (how == "auto" and module.device.type == "cpu") or not has_adapters(module.policy):
            return []
        return separable_adapters(module.policy) if adapter_rank(module.policy) <= ADAPTER_RANKS[-1] else []

    def _placed(self, adapters: list[str]) -> bool:
        """Whether the engine has a place for each of them."""
        replicas = self._running().fingerprints(dict.fromkeys(adapters, 1), 0)
        return all(name in placed for placed in replicas for name in adapters)

    def _check_adapters(self, module: PolicyOwner) -> None:
        if self._adapters or not has_adapters(module.policy):
            return
        what = f"vLLM cannot hold these adapters of {self._family} beside the weights"
        if self.settings.adapters == "apart":
            self.close()
            raise ConfigurationError(f"{what}: use merged", key="engine.adapters")
        if self.settings.adapters == "auto" and module.device.type != "cpu":
            log.warning("%s: it is sent all weights, with the adapters in them, at every sync", what)

    def _open(self, folder: Path, device: torch.device) -> int:
        """Starts the backend; returns the longest prompt and completion together."""
        settings, local = self.settings, self._local_settings(device)
        self._backend = (
            SeparateEngines(settings, local, device) if self._separate else Colocated(local, settings.sleep_level)
        )
        try:
            self._backend.start(folder)
        except BaseException:  # Ctrl-C too leaves no engine behind
            self.close()
            raise
        return self._backend.max_model_len

    def _longest_row(self, switch: int | None) -> int | None:
        """``max_model_len``, or where rotary embeddings change for all rows: an engine with room beyond that turns
        short rows as well otherwise than the trainer."""
        wanted = self.settings.max_model_len
        if switch is not None and wanted is not None and wanted > switch:
            raise ConfigurationError(
                f"must be at most {switch}, where this policy's rotary embeddings change (longrope); got {wanted}",
                key="engine.max_model_len",
            )
        return wanted or switch

    def _local_settings(self, device: torch.device) -> LocalEngineSettings:
        settings, index, together = self.settings, device.index or 0, self._together
        launched = not self._separate and (together.size > 1 or index > 0)
        return LocalEngineSettings(
            dtype=str(self._dtype).removeprefix("torch."),
            gpu_memory_share=settings.gpu_memory_share,
            kv_cache_gib=settings.kv_cache_gib,
            tensor_parallel_size=settings.tensor_parallel_size,
            max_model_len=self._longest,
            max_sequences=settings.max_sequences,
            prefix_caching=settings.prefix_caching,
            sleep=not self._separate and settings.sleep_level > 0,
            unknown_token_ids=self._unknown,
            adapter_rank=self._adapter_rank,
            colocated=not self._separate,
            seed=settings.seed,
            rank=together.rank if launched else None,
            device_index=index,
        )

    @property
    def concurrent(self) -> bool:
        """Whether it may generate while the policy is trained: it holds weights and processes of its own."""
        return self._separate

    @property
    def _separate(self) -> bool:
        return self.settings.placement == "separate"

    def _driven(self, action: Callable[[], T]) -> T:
        """Separate engines are driven by rank 0 for all ranks, colocated ones by each rank for itself; either way a
        failure is one of all ranks, which restart together."""
        return self._together.on_rank_zero(action) if self._separate else self._together.on_every_rank(action)

    def sync(self, module: PolicyOwner) -> None:
        """Hands over the policy's weights, proves that they arrived, and forgets cached prefixes.

        Raises:
            EngineFailure: "died", "hung" or "refused".
            WeightSyncError: the engine holds something else; the message names the tensors.
        """
        started = time.perf_counter()
        self._module, self.last_sync_bytes = module, 0
        self._transposed = transposed_names(module.policy)
        dropped = not self._separate and self._running().needs_weights
        if not (self._adapters and self._base_held) or dropped:
            tied = tied_widths(module.policy) if self._absent is None else {}
            weights = checkpoint_weights(module.policy, merged=not self._adapters)
            self._sent(weights, lambda: self._hand_over(weights, tied))
            self._base_held = True
        if self._adapters:
            adapters = adapter_weights(module.policy)
            self._sent(adapters, lambda: self._hand_over_adapters(adapters))
        self._syncs += 1
        self.last_sync_seconds = time.perf_counter() - started

    def _sent(self, weights: Weights, hand_over: Callable[[], int]) -> None:
        """Collective; every rank sees ``weights`` to their end, whatever happens, for each takes part in gathering."""
        if self._separate and self._together.rank > 0:
            _drain(weights)
        self.last_sync_bytes += self._driven(hand_over)

    def _hand_over(self, weights: Weights, tied: dict[str, int]) -> int:
        backend = self._running()
        if self._absent is None:  # some of vLLM's models have no head of their own where it is tied, and refuse one
            replicas = backend.fingerprints(tied, 0) if tied else []
            self._absent = frozenset(name for name in tied if not all(name in placed for placed in replicas))
        return self._proved(weights, backend.load, self._absent)

    def _hand_over_adapters(self, adapters: Weights) -> int:
        from safetensors.torch import save

        backend, rank = self._running(), self._adapter_rank
        assert rank is not None, "there are adapters"

        def load(watched: Weights) -> None:
            backend.adapt(rank, save({name: tensor.to("cpu", self._dtype).contiguous() for name, tensor in watched}))

        return self._proved(adapters, load)

    def _proved(self, weights: Weights, load: Callable[[Weights], None], absent: frozenset[str] = frozenset()) -> int:
        """Has ``load`` hand over the weights that are not ``absent`` and compares what arrived; the bytes of them."""
        record = SyncRecord(self._dtype, self._syncs, self._transposed)
        wanted = record.count((name, tensor) for name, tensor in weights if name not in absent)
        with self._family_in_one_line():
            try:
                load(record.watch(wanted) if self.settings.verify_weights else wanted)
            finally:
                _drain(weights)
            if self.settings.verify_weights:
                for held in self._running().fingerprints(record.widths, record.round_number):
                    record.check(held)
        return record.bytes

    @contextlib.contextmanager
    def _family_in_one_line(self) -> Iterator[None]:
        """Inside, what vLLM's loader stumbles over before it has ever taken this policy's weights is no failure of the
        engine, which a restart may cure, but one of vLLM's model of the family."""
        try:
            yield
        except (EngineFailure, WeightSyncError) as error:
            if self._syncs or not (isinstance(error, WeightSyncError) or LOADER_ERROR.search(str(error))):
                raise
            cause = " ".join(str(error).split())[:300]
            raise ConfigurationError(
                f"vLLM's model of {self._family} does not take this policy's weights, use the transformers engine "
                f"({cause})",
                key="engine",
            ) from error

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """See :class:`app.engines.engine.RolloutEngine`.

        Raises:
            EngineFailure: "died", "hung" or "refused".
            ConfigurationError: a request that vLLM would not answer as asked.
        """
        check_requests(requests, self._vocab_size, self._max_model_len, self.settings.max_model_len is not None)
        if not self._separate:
            backend = self._running()
            if backend.needs_weights and self._module is not None:
                self.sync(self._module)
            return self._driven(lambda: _interruptible(backend, requests))
        everyone, mine = self._together.gathered(list(requests))
        return self._driven(lambda: _interruptible(self._running(), everyone))[mine]

    def close(self) -> None:
        """Ends the engine, and its processes where they are ours; may be called again."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    @property
    def _together(self) -> RolloutRanks:
        if self._ranks is None:
            raise RuntimeError("the engine is not started: call start(module) first")
        return self._ranks

    def _running(self) -> Backend:
        if self._backend is None:
            raise RuntimeError("the engine is not started: call start(module) first")
        return self._backend


def _interruptible(backend: Backend, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
    with STOP.interruptible():
        return backend.generate(requests)


def _drain(weights: Weights) -> None:
    deque(weights, maxlen=0)


def write_model_files(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes config.json and the tokenizer, all that vLLM needs to build the model without its weights."""
    names = [cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers.models.")]
    config = for_vllm(model.config)
    config.architectures = names[:1]  # sharding wraps the class under another name
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
