"""Rollouts by vLLM: in the trainer's process, or in processes or on machines of their own."""

import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from app.errors import ConfigurationError
from app.rollout.engine import Completion, GenerationRequest, PolicyOwner
from app.rollout.faults import EngineFailure
from app.rollout.vllm_local import LocalEngine, LocalEngineSettings
from app.rollout.vllm_ranks import gathered, on_rank_zero, rank_and_size
from app.rollout.vllm_separate import SeparateEngines, Weights
from app.rollout.vllm_settings import DTYPES, Placement, VLLMSettings, check_requests, require_vllm
from app.rollout.weight_sync import SyncRecord, policy_weights, sum_of_shards

if TYPE_CHECKING:
    from torch import nn


class VLLMEngine:
    """A :class:`app.rollout.engine.RolloutEngine` on vLLM.

    Where a platform has no sleep mode or no CUDA graphs (a CPU), vLLM is asked and they are left out. With several
    ranks, ``start``, ``sync``, ``generate`` and ``close`` are called on all of them: a colocated engine lives on every
    rank, separate ones are driven by rank 0, which generates for all in one batch.

    Args:
        placement: "colocated": in the trainer's process, weights handed over in memory. "separate": in processes
            started here, or at ``address``.
        address: host:port of ``python -m app.rollout.vllm_server``, for an engine on another machine.
        dtype: float32, bfloat16 or float16; "policy" is the policy's own.
        gpu_memory_share: of a GPU's memory, for the engine's weights and cache.
        kv_cache_gib: fixed size of the key-value cache instead; without a GPU 1 GiB where none is given.
        sleep_level: what a colocated engine gives back to training, where the platform can: 0 nothing; 1 keeps the
            weights in host memory; 2 drops them, and the next round of generation takes them from the policy again.
        tensor_parallel_size: GPUs of one separate engine.
        data_parallel_size: separate engines that share the requests, each of ``tensor_parallel_size`` GPUs.
        devices: the separate engines' GPUs by number; by default the first ones.
        max_model_len: longest prompt and completion together; by default the model's own limit.
        max_sequences: completions decoded at once.
        prefix_caching: a prompt's keys and values are computed once for all its completions.
        verify_weights: compares fingerprints after every sync and stops where they differ.
        start_timeout_s: for a separate engine to start.
        generate_timeout_s: for a separate engine to answer, after which it is taken to hang.
        seed: of vLLM's own generators; completions have seeds of their own.

    Attributes:
        last_sync_seconds: time of the last ``sync``, verification included.
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
            start_timeout_s=start_timeout_s,
            generate_timeout_s=generate_timeout_s,
            seed=seed,
        )
        if address is None:
            require_vllm()
        self.last_sync_seconds = 0.0
        self.start_seconds = 0.0
        self._backend: _Backend | None = None
        self._dtype = torch.float32
        self._vocab_size = 0
        self._syncs = 0

    def start(self, module: PolicyOwner) -> None:
        """Builds the engine from the policy's config, without weights.

        Raises:
            EngineFailure: "start".
            ConfigurationError: vLLM cannot run this model here.
        """
        self.close()
        started = time.perf_counter()
        model = _base_model(module.policy)
        self._dtype = self.settings.engine_dtype(next(model.parameters()).dtype)
        self._vocab_size = model.config.vocab_size
        separate = self.settings.placement == "separate"
        with tempfile.TemporaryDirectory(prefix="vllm-model-") as name:
            folder = Path(name)
            write_model_files(model, module.tokenizer, folder)
            if separate:
                self._backend = on_rank_zero(lambda: self._start_separate(folder, module.device))
            else:
                self._backend = Colocated(folder, self._local_settings(), self.settings.sleep_level)
        self.start_seconds = time.perf_counter() - started
