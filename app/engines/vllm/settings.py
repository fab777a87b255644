"""Settings of the vLLM engine, and how a request reads in vLLM's terms. Imports vllm inside functions alone."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from app.engines.engine import GenerationRequest
from app.errors import ConfigurationError
from app.seeds import derive_seed

if TYPE_CHECKING:
    from vllm import SamplingParams

Placement = Literal["colocated", "separate"]
Adapters = Literal["auto", "apart", "merged"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GIB = 1 << 30
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0


@dataclass(frozen=True)
class VLLMSettings:
    """See :class:`VLLMEngine` for what each one means."""

    placement: Placement = "colocated"
    address: str | None = None
    dtype: str = "policy"
    gpu_memory_share: float = 0.4
    kv_cache_gib: float | None = None
    sleep_level: int = 1
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    devices: tuple[int, ...] | None = None
    max_model_len: int | None = None
    max_sequences: int = 256
    prefix_caching: bool = True
    verify_weights: bool = True
    adapters: Adapters = "auto"
    start_timeout_s: float = 600.0
    generate_timeout_s: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (holds, rule) in self._rules().items():
            if not holds:
                raise ConfigurationError(f"{rule}, got {getattr(self, name)!r}", key=f"engine.{name}")
        self._check_placement()

    def _rules(self) -> dict[str, tuple[bool, str]]:
        positive = ("tensor_parallel_size", "data_parallel_size", "max_sequences")
        seconds = ("start_timeout_s", "generate_timeout_s")
        return {
            "placement": (self.placement in ("colocated", "separate"), "must be colocated or separate"),
            "adapters": (self.adapters in ("auto", "apart", "merged"), "must be auto, apart or merged"),
            "dtype": (self.dtype in ("policy", *DTYPES), f"must be policy or one of {', '.join(DTYPES)}"),
            "gpu_memory_share": (0 < self.gpu_memory_share <= 1, "must lie in (0, 1]"),
            "kv_cache_gib": (self.kv_cache_gib is None or self.kv_cache_gib > 0, "must be positive"),
            "sleep_level": (self.sleep_level in (0, 1, 2), "must be 0 (never sleeps), 1 or 2"),
            "max_model_len": (self.max_model_len is None or self.max_model_len > 1, "must be at least 2"),
            **{name: (getattr(self, name) >= 1, "must be at least 1") for name in positive},
            **{name: (getattr(self, name) > 0, "must be positive") for name in seconds},
        }

    def _check_placement(self) -> None:
        if self.placement == "separate":
            self._check_separate()
            return
        if self.address is not None:
            raise ConfigurationError("needs placement: separate", key="engine.address")
        if self.devices is not None:
            raise ConfigurationError("needs placement: separate", key="engine.devices")
        for name in ("tensor_parallel_size", "data_parallel_size"):
            if getattr(self, name) > 1:
                raise ConfigurationError(
                    "must be 1 when colocated, where every rank has an engine of its own; use placement: separate",
                    key=f"engine.{name}",
                )

    def _check_separate(self) -> None:
        if self.address is not None and self.data_parallel_size > 1:
            raise ConfigurationError("one address is one engine; must be 1", key="engine.data_parallel_size")
        if self.address is not None and self.devices is not None:
            raise ConfigurationError("an engine given by address has its own devices", key="engine.devices")
        wanted = self.tensor_parallel_size * self.data_parallel_size
        if self.devices is not None and len(self.devices) != wanted:
            raise ConfigurationError(
                f"needs tensor_parallel_size * data_parallel_size = {wanted} numbers, got {len(self.devices)}",
                key="engine.devices",
            )
        if self.address is not None:
            check_address(self.address)

    def engine_dtype(self, policy_dtype: torch.dtype) -> torch.dtype:
        """What the engine computes in, beside a policy that computes in ``policy_dtype``."""
        return policy_dtype if self.dtype == "policy" else DTYPES[self.dtype]


def check_address(address: str) -> None:
    """Raises ConfigurationError unless ``address`` reads host:port or unix:/path."""
    host, _, port = address.rpartition(":")
    if not (address.startswith("unix:/") or (host and port.isdigit())):
        raise ConfigurationError(f"must be host:port or unix:/path, got {address!r}", key="engine.address")


def require_vllm() -> None:
    """Raises ConfigurationError where vLLM is not installed; quick, for it imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigurationError("vLLM is not installed: run `make setup-vllm`", key="engine")


def check_requests(requests: Sequence[GenerationRequest], vocab_size: int, engine_len: int, asked: bool) -> None:
    """Raises ConfigurationError for what vLLM would crash on, cut short or draw from another distribution.

    Args:
        requests: to be sent.
        vocab_size: of the policy.
        engine_len: longest prompt and completion together that the engine takes.
        asked: whether that was set by the user; the model's own limit ends a completion ("length"), here as elsewhere.
    """
    for request in requests:
        sampling = request.sampling
        length = len(request.prompt_ids) + (sampling.max_new_tokens if asked else 1)
        if length > engine_len:
            raise ConfigurationError(
                f"a prompt of {len(request.prompt_ids)} tokens and max_new_tokens={sampling.max_new_tokens} do not "
                f"fit into the engine's {engine_len} positions",
                key="engine.max_model_len",
            )
        if not request.prompt_ids or not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
            raise ConfigurationError(
                f"a prompt is empty or has ids outside the policy's vocabulary of {vocab_size}: is the tokenizer "
                "the policy's?",
                key="engine",
            )
        if 0 < sampling.temperature < LOWEST_TEMPERATURE:
            raise ConfigurationError(
                f"vLLM raises temperatures below {LOWEST_TEMPERATURE} to it; use 0 for greedy decoding",
                key="sampling.temperature",
            )
        if sampling.temperature > HIGHEST_TEMPERATURE:
            raise ConfigurationError(
                f"vLLM takes temperatures up to {HIGHEST_TEMPERATURE:g}, got {sampling.temperature:g}",
                key="sampling.temperature",
            )
        if sampling.min_p > 0 and sampling.top_p < 1:
            raise ConfigurationError(
                "vLLM applies min-p before top-p, other engines after it; use one of the two", key="sampling.min_p"
            )


def sampling_params(request: GenerationRequest, unknown: Sequence[int] = ()) -> "list[SamplingParams]":
    """vLLM's parameters for each of the request's n completions. ``unknown``: ids that the tokenizer does not know.

    Completion i is a request of its own, seeded with ``derive_seed(request.seed, i)``; vLLM's prefix cache shares the
    prompt between them. The end of a completion is decided by ``end_token_ids`` alone, not by the tokenizer's EOS.
    """
    from vllm import SamplingParams

    sampling = request.sampling
    stops: dict[str, Any] = {}
    if sampling.stop_strings:
        # A stop string may be a special token, which vLLM's text would not hold.
        stops = {
            "stop": list(sampling.stop_strings),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
    # vLLM reports log-probs of what is left after the bias, renormalised (logprobs_mode).
    bias = dict.fromkeys(unknown, -math.inf) if sampling.forbid_unknown_tokens else {}
    return [
        SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            seed=derive_seed(request.seed, index),
            ignore_eos=True,
            stop_token_ids=list(request.end_token_ids),
            logprobs=0,  # the sampled token's alone
            logit_bias=bias or None,
            detokenize=bool(stops),
            **stops,
        )
        for index in range(request.n)
    ]
