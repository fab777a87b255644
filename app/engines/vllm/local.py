"""One vLLM engine in this process: inside the trainer (colocated) or inside the engine's own server process."""

import contextlib
import gc
import getpass
import json
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.engines.engine import Completion, GenerationRequest
from app.engines.vllm.models import check_model, classes_as_they_were, takes_adapters
from app.engines.vllm.settings import GIB, sampling_params
from app.engines.weight_sync import Weights
from app.storage.scratch import ScratchFolder

if TYPE_CHECKING:
    from vllm import LLM, CompletionOutput
    from vllm.lora.request import LoRARequest

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core runs in this process
    "VLLM_LOGGING_LEVEL": "ERROR",  # a CPU engine warns at every sync
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads and cores stay as the user set them
    "VLLM_NO_USAGE_STATS": "1",
}
WORKER_EXTENSION = "app.engines.vllm.worker.PolicyWeights"

ADAPTER = "policy"
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The room for adapters that vLLM has kernels for."""
WHOLE_PROMPT_TOKENS = 32768
"""Prompt tokens of one step where prompts cannot be cut; the longest model's context must fit."""


@dataclass(frozen=True)
class LocalEngineSettings:
    """What one engine is built from; plain values, which also travel to a server.

    Attributes:
        dtype: float32, bfloat16 or float16.
        max_model_len: longest prompt and completion together; None takes the model's own limit.
        sleep: keeps memory so that it can be given back between rollouts, where the platform can.
        transfer: vLLM's weight-transfer backend, "nccl" or "ipc", or None.
        rank: the trainer's, of an engine inside it that vLLM would otherwise take for the only one, on the first
            device: where there are several ranks, or the device is another one. None otherwise.
        device_index: number of the device that such an engine shares with the trainer.
        colocated: whether the trainer's policy lives in the same process.
        unknown_token_ids: of the model's vocabulary that the tokenizer does not know.
        adapter_rank: of adapters that the engine is to hold beside the weights; None for none.
    """

    dtype: str
    gpu_memory_share: float
    kv_cache_gib: float | None
    tensor_parallel_size: int
    max_model_len: int | None
    max_sequences: int
    prefix_caching: bool
    sleep: bool
    seed: int
    transfer: str | None = None
    rank: int | None = None
    device_index: int = 0
    colocated: bool = False
    unknown_token_ids: tuple[int, ...] = ()
    adapter_rank: int | None = None


class LocalEngine:
    """vLLM's ``LLM`` with the few calls that rollouts need; leaves the process as it found it.

    Args:
        folder: holds config.json and the tokenizer; weights are never read from disk.
        settings: see :class:`LocalEngineSettings`.

    Raises:
        ConfigurationError: where vLLM cannot run the model on this machine.
    """

    def __init__(self, folder: Path, settings: LocalEngineSettings) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._owns_process_group = not torch.distributed.is_initialized()
        self._scratch = ScratchFolder("vllm")
        release_cached_memory()
        # Lightning validates in inference mode; weights that are made in it could not be replaced outside.
        kept = classes_as_they_were(settings.colocated), temporary_files_in(self._scratch.path)
        with torch.inference_mode(False), process_as_it_was(), eager(), kept[0], kept[1]:
            try:
                self.llm = _build(folder, settings)
            except BaseException:
                self._leave_process_group()
                self._scratch.close()
                raise
        self.max_model_len: int = self.llm.model_config.max_model_len
        self._unknown = tuple(settings.unknown_token_ids)
        self._adapter: LoRARequest | None = None
        self.can_sleep = settings.sleep and _sleep_available()

    def reload(self, weights: Weights) -> None:
        """Takes over weights in memory, by copying."""
        with torch.inference_mode(False), eager(), torch.no_grad():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def adapt(self, rank: int, data: bytes) -> None:
        """Takes over adapters of this rank, in the place of former ones.

        Args:
            rank: r.
            data: safetensors bytes of ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``, B with its scaling.
        """
        from vllm.lora.request import LoRARequest

        folder = self._scratch.path / "adapter"
        folder.mkdir(exist_ok=True)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": []}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes(data)
        with torch.inference_mode(False), eager(), torch.no_grad():
            self.llm.llm_engine.add_lora(LoRARequest(ADAPTER, 1, str(folder), load_inplace=True))
        self._adapter = LoRARequest(ADAPTER, 1, str(folder))

    def call(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of :class:`app.engines.vllm.worker.PolicyWeights` on every worker."""
        with eager():
            return self.llm.collective_rpc(method, args=args)

    def forget_prefixes(self) -> None:
        """Empties the prefix cache, whose keys and values belong to the weights that made them."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: requests are still running")

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """See :class:`app.engines.engine.RolloutEngine`."""
        params = [one for request in requests for one in sampling_params(request, self._unknown)]
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests for _ in range(request.n)]
        with process_as_it_was(), eager():
            asked = {"use_tqdm": False, "lora_request": self._adapter}
            outputs = iter(self.llm.generate(prompts, params, **asked)) if prompts else iter(())
        return [[_completion(next(outputs).outputs[0]) for _ in range(request.n)] for request in requests]

    def sleep(self, level: int) -> None:
        """Gives the device's memory back: weights go to the host (1) or are dropped (2), the cache is dropped."""
        self.llm.sleep(level)

    def wake(self, what: str | None = None) -> None:
        """Takes memory for ``weights``, ``kv_cache`` or both again, which torch's cache from training may hold."""
        release_cached_memory()
        self.llm.wake_up([what] if what else None)

    def close(self) -> None:
        """Frees the engine, and the process group where vLLM made it."""
        from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO

        with self._process_group():
            self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        # After a reload vLLM's notes on the layers hold the layers themselves, and with them all weights.
        LAYERWISE_INFO.clear()
        gc.collect()
        release_cached_memory()
        self._scratch.close()

    def _leave_process_group(self) -> None:
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        with self._process_group():
            destroy_model_parallel()
            destroy_distributed_environment()

    @contextlib.contextmanager
    def _process_group(self) -> Iterator[None]:
        """vLLM's shutdown ends the default process group, which must not happen to the trainer's own."""
        destroy = torch.distributed.destroy_process_group

        def destroy_others(group: Any = None) -> None:
            if group is not None or self._owns_process_group:
                destroy(group)

        torch.distributed.destroy_process_group = destroy_others
        try:
            yield
        finally:
            torch.distributed.destroy_process_group = destroy


def release_cached_memory() -> None:
    """Gives back what torch's allocator keeps for later: vLLM asks the device for memory, not torch."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _build(folder: Path, settings: LocalEngineSettings) -> "LLM":
    from vllm import LLM
    from vllm.platforms import current_platform

    check_model(folder, settings.dtype)
    arguments: dict[str, Any] = {}
    if settings.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * GIB)
    elif current_platform.is_cpu():  # where a share of all memory would be one of the host's
        arguments["kv_cache_memory_bytes"] = GIB
    if not _generators_rewind(current_platform.device_type):
        # A prompt cut into chunks makes vLLM rewind the request's generator, which not every device's can do.
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": WHOLE_PROMPT_TOKENS}
    if settings.rank is not None:
        arguments["distributed_executor_backend"] = "external_launcher"
        os.environ.update(launcher_environment(settings.rank, settings.device_index))
    if settings.adapter_rank is not None and takes_adapters(folder):
        rank = next(rank for rank in ADAPTER_RANKS if rank >= settings.adapter_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    if settings.transfer:
        arguments["weight_transfer_config"] = {"backend": settings.transfer}
    return LLM(
        model=str(folder),
        load_format="dummy",
        dtype=settings.dtype,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        gpu_memory_utilization=settings.gpu_memory_share,
        tensor_parallel_size=settings.tensor_parallel_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_sequences,
        enable_prefix_caching=settings.prefix_caching,
        enable_sleep_mode=settings.sleep and _sleep_available(),
        enforce_eager=not current_platform.support_static_graph_mode(),
        disable_log_stats=True,
        worker_extension_cls=WORKER_EXTENSION,
        seed=settings.seed,
        **arguments,
    )


def launcher_environment(rank: int, device_index: int) -> dict[str, str]:
    """What torchrun would have told vLLM; Lightning's own launch and SLURM set no RANK, and torchrun's LOCAL_RANK is
    not the device where ``trainer.devices`` names some."""
    from vllm.utils.network_utils import get_open_port

    environment = {"RANK": str(rank), "LOCAL_RANK": str(device_index)}
    if not torch.distributed.is_initialized():  # vLLM makes a group of its own, of this process alone
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_open_port())}
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    return environment


def _generators_rewind(device: str) -> bool:
    """Whether the device's random generators know their offset."""
    try:
        torch.Generator(device).get_offset()
    except RuntimeError:
        return False
    return True


def _sleep_available() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_sleep_mode_available()


def _completion(output: "CompletionOutput") -> Completion:
    ids = list(output.token_ids)
    log_probs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
    return Completion(ids, log_probs, "stop" if output.finish_reason == "stop" else "length")


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Inside, temporary files lie in ``folder``, such as the one by which vLLM's ranks meet, which a kill leaves."""
    # Compiled code is kept for the next start where torch would keep it without this.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}")
    former, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = former


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """Undoes what vLLM changes in the process around it: random generators, threads, precision of matrix products,
    environment, tracebacks."""
    import numpy

    states = random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    excepthook, precision = sys.excepthook, torch.get_float32_matmul_precision()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        sys.excepthook = excepthook  # a process group marks tracebacks with its rank
        torch.set_num_threads = set_threads  # the CPU worker replaces it by a warning
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
        for name in [name for name in os.environ if not name.startswith("VLLM_") and name not in environment]:
            del os.environ[name]
        os.environ.update(environment)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Without graph capture: functions that vLLM compiles would take tens of seconds at their first call."""
    from vllm.platforms import current_platform

    if current_platform.support_static_graph_mode():
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield
