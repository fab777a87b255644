"""Runs inside vLLM's workers: takes the policy's weights as safetensors bytes, and says what the worker holds.

vLLM fuses projections (``qkv_proj``, ``gate_up_proj``), shards them over tensor-parallel workers, pads vocabularies and
on CPU repacks matrices into a form that only its kernels read. The fingerprints here are of what the forward pass
uses: a repacked layer is fed one-hot rows and returns its own columns, exactly.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from app.engines.weight_sync import as_matrix, fingerprint, sampled_columns

if TYPE_CHECKING:
    from torch import nn


ADAPTER = re.compile(r"(.*)\.lora_([AB])\.weight")
"""A layer's name, and which of its adapter's factors."""
QKV = {"q": 0, "k": 1, "v": 2}
"""What vLLM calls the parts of a fused projection of queries, keys and values."""


@dataclass(frozen=True)
class Shard:
    """Where a worker's piece of a weight lies: in the worker's tensor, and in the whole one.

    Attributes:
        row, rows: first row and number of rows in the worker's tensor; ``rows`` None means all of them.
        first_row, first_column: in the whole tensor.
        counted: False on a worker whose piece is a copy of another worker's.
    """

    row: int = 0
    rows: int | None = None
    first_row: int = 0
    first_column: int = 0
    counted: bool = True


class PolicyWeights:
    """Methods added to every vLLM worker (``worker_extension_cls``), called through ``collective_rpc``."""

    model_runner: Any
    model_config: Any
    vllm_config: Any

    def policy_begin(self) -> None:
        """Opens a weight update: vLLM puts its layers back into the checkpoint's layout."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model_runner.get_model())

    def policy_receive(self, data: bytes) -> None:
        """Loads some of the weights, ``data`` being safetensors bytes of them under their Hugging Face names."""
        from safetensors.torch import load
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            self.model_runner.get_model().load_weights(load(data).items())

    def policy_finish(self) -> None:
        """Ends a weight update: vLLM fuses and repacks."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.model_runner.get_model(), self.model_config)

    @torch.no_grad()
    def policy_fingerprints(self, widths: dict[str, int], round_number: int) -> dict[str, int]:
        """Fingerprints of this worker's pieces by Hugging Face name, those of adapters (``….lora_A.weight``) included;
        names that it cannot place are left out."""
        model, reader = self.model_runner.get_model(), LayerReader()
        held = {}
        for name, width in widths.items():
            adapter = ADAPTER.fullmatch(name)
            place = _locate(model, name if adapter is None else f"{adapter[1]}.weight")
            if place is None:
                continue
            layer, kind, part = place
            if adapter is None:
                base = getattr(layer, "base_layer", layer)  # of a layer that holds adapters beside it
                held[name] = _held_fingerprint(reader, base, kind, part, width, round_number)
            elif hasattr(layer, "lora_a_stacked"):
                held[name] = _adapter_fingerprint(layer, adapter[2], part or 0, width, round_number)
        return held


def _locate(model: "nn.Module", name: str) -> "tuple[nn.Module, str, int | None] | None":
    """(layer, its attribute such as "weight", part of a fused layer) that holds a Hugging Face weight, or None."""
    for own, part in _own_names(model, name):
        path, _, kind = own.rpartition(".")
        try:
            layer = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(getattr(layer, kind, None), torch.Tensor):
            return layer, kind, part
    return None


def _own_names(model: "nn.Module", name: str) -> Iterator[tuple[str, int | None]]:
    """Names that the model may have for a Hugging Face weight, and which part of a fused layer it is."""
    yield name, None
    path, _, kind = name.rpartition(".")
    parent, _, leaf = path.rpartition(".")
    for fused, parts in getattr(model, "packed_modules_mapping", {}).items():
        if leaf in parts and fused != leaf:
            yield f"{parent}.{fused}.{kind}".removeprefix("."), parts.index(leaf)
    mapper = getattr(model, "hf_to_vllm_mapper", None)  # some families say it by this alone
    mapped = None if mapper is None else mapper._map_name_with_shard(name)
    if mapped is not None and not isinstance(mapped[1], list):
        yield mapped[0], QKV.get(mapped[1], mapped[1])


class LayerReader:
    """Reads columns of layers' weights; the parts of a fused layer, which come in a row, share one reading."""

    def __init__(self) -> None:
        self._layer: nn.Module | None = None
        self._values = torch.empty(0)

    def columns(self, layer: "nn.Module", local: torch.Tensor) -> torch.Tensor:
        """[R, K] of the rows that this worker holds, at ``local`` columns, the same ones in every call for a layer."""
        if layer is not self._layer:
            self._layer, self._values = layer, _read(layer, local)
        return self._values


def _read(layer: "nn.Module", local: torch.Tensor) -> torch.Tensor:
    if _repacked(layer):
        one_hot = torch.nn.functional.one_hot(local, _local_width(layer)).to(layer.weight.dtype)
        return layer.quant_method.apply(layer, one_hot, None).T
    return as_matrix(layer.weight).index_select(1, local.to(layer.weight.device))


def _held_fingerprint(
    reader: LayerReader, layer: "nn.Module", kind: str, part: int | None, width: int, round_number: int
) -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    shard = _shard(layer, kind, part, getattr(layer, "tp_rank", get_tensor_model_parallel_rank()))
    if not shard.counted:
        return 0
    columns = sampled_columns(width, round_number)
    values, columns = _columns(reader, layer, kind, columns, shard)
    values = values[shard.row :] if shard.rows is None else values[shard.row : shard.row + shard.rows]
    return fingerprint(values, columns, width, shard.first_row)


def _adapter_fingerprint(layer: "nn.Module", factor: str, part: int, width: int, round_number: int) -> int:
    """Of A, which row-parallel layers share by its columns, or of B, which column-parallel layers share by its rows;
    the other one is whole on every worker. Beyond the adapter's rank lie zeros, which count nothing."""
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.layers.linear import RowParallelLinear

    rank = getattr(layer, "tp_rank", get_tensor_model_parallel_rank())
    by_columns = isinstance(layer.base_layer, RowParallelLinear)
    shard = _shard(layer.base_layer, "weight", part if len(layer.lora_a_stacked) > 1 else None, rank)
    columns = sampled_columns(width, round_number)
    if factor == "A":
        values, first_row, counted = layer.lora_a_stacked[part][0, 0], 0, by_columns or rank == 0
        local = columns - shard.first_column
        here = (local >= 0) & (local < values.shape[1])
        local, columns = local[here], columns[here]
    else:
        values, first_row, local = layer.lora_b_stacked[part][0, 0], shard.first_row, columns
        counted = rank == 0 if by_columns else shard.counted
    values = values.index_select(1, local.to(values.device))
    return fingerprint(values, columns, width, first_row) if counted else 0


def _columns(
    reader: LayerReader, layer: "nn.Module", kind: str, columns: torch.Tensor, shard: Shard
) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, K] values of this worker's rows, and those of the wanted columns that lie on this worker."""
    if kind != "weight":  # a bias, a state-space model's decay, an attention sink …: lies there as it is
        values = as_matrix(getattr(layer, kind))
        return values.index_select(1, columns.to(values.device)), columns
    local = columns - shard.first_column
    here = (local >= 0) & (local < _local_width(layer))
    return reader.columns(layer, local[here]), columns[here]


def _repacked(layer: "nn.Module") -> bool:
    """True where the forward pass reads a packed copy, not ``layer.weight``; embeddings look up the weight itself."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    return isinstance(layer, LinearBase | ParallelLMHead) and hasattr(layer, "cpu_linear")


def _local_width(layer: "nn.Module") -> int:
    """Columns of this worker's weight, also where the tensor itself was given up for a packed one."""
    from vllm.model_executor.layers.linear import RowParallelLinear

    if isinstance(layer, RowParallelLinear):
        return layer.input_size_per_partition
    return getattr(layer, "input_size", None) or as_matrix(layer.weight).shape[1]


def _shard(layer: "nn.Module", kind: str, part: int | None, rank: int) -> Shard:
    """Which piece of the whole weight the worker of this tensor-parallel rank holds."""
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if isinstance(layer, VocabParallelEmbedding):
        indices = layer.shard_indices
        return Shard(rows=indices.num_org_elements, first_row=indices.org_vocab_start_index)
    if isinstance(layer, linear.QKVParallelLinear) and part is not None:
        return _qkv_shard(layer, part, rank)
    if isinstance(layer, linear.MergedColumnParallelLinear) and part is not None:
        sizes = layer.output_partition_sizes
        return Shard(sum(sizes[:part]), sizes[part], rank * sizes[part])
    if isinstance(layer, linear.ColumnParallelLinear):
        return Shard(first_row=rank * layer.output_size_per_partition)
    if isinstance(layer, linear.RowParallelLinear) and kind == "weight":
        return Shard(first_column=rank * layer.input_size_per_partition)
    return Shard(counted=rank == 0)


def _qkv_shard(layer: "nn.Module", part: int, rank: int) -> Shard:
    """Queries, keys or values; where there are more workers than key heads, several hold the same ones."""
    key_rows = layer.num_kv_heads * layer.head_size
    sizes = [layer.num_heads * layer.head_size, key_rows, layer.num_kv_heads * layer.v_head_size]
    copies = 1 if part == 0 else layer.num_kv_head_replicas
    first_row = rank // copies * sizes[part]
    return Shard(sum(sizes[:part]), sizes[part], first_row, counted=rank % copies == 0)
