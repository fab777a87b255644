"""The print-out of ``fit --dry_run``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from app.dry_run.advice import check_plan, warnings_of
from app.dry_run.audit import audit_section
from app.dry_run.batches import batch_counts
from app.dry_run.layout import BYTES
from app.dry_run.memory import (
    GIB,
    Item,
    MicroBatch,
    Phase,
    Resident,
    format_bytes,
    generation_items,
    peak,
    resident_items,
    training_items,
)
from app.dry_run.plan import Parts, Plan, make_plan
from app.dry_run.sources import policy_place, resolve
from app.engines.transformers_engine import TransformersEngine
from app.engines.vllm.engine import VLLMEngine

Rows = Iterable[tuple[str, str]]
PHASES = {
    "host": "in host memory",
    "held": "held throughout",
    "training": "while training",
    "generating": "while generating",
}


def dry_run(parts: Parts) -> str:
    """What a run would read, do and hold.

    Raises:
        ConfigurationError: the run could not work.
    """
    plan = make_plan(parts)
    check_plan(plan)
    counts = batch_counts(parts.module, parts.data, parts.rollouts, plan.layout.ranks, plan.row_tokens)
    items = memory_items(plan)
    warnings = warnings_of(plan, peak(items))
    sections = [
        _section("paths", _paths(plan)),
        _section("model", _model(plan)),
        _section("processes", _processes(plan)),
        _batches(plan, counts),
        _memory(items),
        *audit_section(parts, fit=True),
        _section("a prompt", plan.first_prompt.rows()),
        _warnings(warnings),
    ]
    return "\n\n".join(sections)


def memory_items(plan: Plan) -> list[Item]:
    """Every estimate of a rank's memory."""
    parts, layout = plan.parts, plan.layout
    held = Resident(
        counts=plan.counts,
        gathered_bytes=layout.gathered_bytes(parts.module.policy_settings.dtype),
        shards=layout.shards,
        sharded=layout.sharded,
        buckets=layout.kind == "ddp",
        optimizer=parts.module.optimizer_settings.name,
        reference=_reference(plan),
        offload=layout.offload,
    )
    training = training_items(_micro_batch(plan), plan.shape, plan.numbers, plan.counts)
    return [*resident_items(held), *training, *_engine_items(plan, held.gathered_bytes)]


def _reference(plan: Plan) -> Literal["none", "device", "host"]:
    """With adapters the reference is the base with its adapters off."""
    rl = plan.parts.reinforcement
    if rl is None or rl.objective.beta == 0 or rl.policy_settings.lora is not None:
        return "none"
    return "host" if rl.reference_offload else "device"


def _micro_batch(plan: Plan) -> MicroBatch:
    parts, rl = plan.parts, plan.parts.reinforcement
    if rl is not None and parts.rollouts is not None:
        rows, logits = plan.completions_a_rank // rl.updates.mini_batches, parts.rollouts.sampling.max_new_tokens
        rows = min(rows, rl.longest_rows_a_pass(plan.row_tokens))
    else:
        rows, logits = parts.data.batch_size // plan.layout.ranks, plan.row_tokens
        rows = min(rows, parts.module.micro_batch_size)
    checkpointing = parts.module.policy_settings.gradient_checkpointing
    return MicroBatch(rows, plan.row_tokens, logits, checkpointing, plan.whole_logits)


def _engine_items(plan: Plan, gathered_bytes: int) -> list[Item]:
    """What generation needs on a training rank."""
    rollouts = plan.parts.rollouts
    if rollouts is None:
        return []
    rows, engine = plan.completions_a_rank * rollouts.schedule.settings.every_n_iterations, rollouts.engine.engine
    if isinstance(engine, TransformersEngine):
        items = generation_items(min(rows, engine.max_batch_rows), plan.row_tokens, plan.shape, plan.numbers)
        if plan.layout.sharded:
            total = plan.counts.total
            items.insert(
                0, Item("whole weights", total * gathered_bytes, "generating", f"{total:,} × {gathered_bytes} B")
            )
        return items
    if isinstance(engine, VLLMEngine) and engine.settings.placement == "colocated":
        return _colocated_items(plan, engine, rows)
    return []


def _colocated_items(plan: Plan, engine: VLLMEngine, rows: int) -> list[Item]:
    """vLLM beside the trainer: its own weights, and a cache that it makes as large as it is told."""
    settings, dtype = engine.settings, plan.parts.module.policy_settings.dtype
    each = plan.layout.compute_bytes(dtype) if settings.dtype == "policy" else BYTES[settings.dtype]
    phase: Phase = "generating" if settings.sleep_level > 0 else "held"
    rows = min(rows, settings.max_sequences)
    cache = float(rows * plan.row_tokens * plan.shape.kv_elements_per_token * each)
    formula = f"for {rows} completions at their longest; vLLM takes gpu_memory_share {settings.gpu_memory_share:g}"
    if settings.kv_cache_gib is not None:
        cache, formula = settings.kv_cache_gib * GIB, "kv_cache_gib"
    return [
        Item("vLLM weights", plan.counts.total * each, phase, f"{plan.counts.total:,} × {each} B"),
        Item("KV cache", cache, phase, formula),
    ]


# ── the sections ──


def _paths(plan: Plan) -> Rows:
    parts, settings = plan.parts, plan.parts.module.policy_settings
    yield "policy", policy_place(settings)
    source = settings.tokenizer if isinstance(settings.tokenizer, str) else None
    made = "made on the spot" if settings.tokenizer is not None and source is None else source or "the policy's"
    template = "with" if plan.tokenizer.chat_template is not None else "without"
    yield "tokenizer", f"{made}: {len(plan.tokenizer):,} tokens, {template} a chat template"
    yield "training set", plan.train.where
    for name, benchmark in parts.data.benchmarks.items():
        limit = f", the first {benchmark.limit}" if benchmark.limit else ""
        yield name, resolve(benchmark.source).where + limit
    yield "run folder", str(Path(parts.trainer.get("default_root_dir") or "runs") / parts.name)
    if parts.export is not None and parts.export.folder:
        yield "export", parts.export.folder


def _model(plan: Plan) -> Rows:
    shape, counts = plan.shape, plan.counts
    trainable = "all trainable" if counts.trainable == counts.total else f"{counts.trainable:,} trainable"
    yield "parameters", f"{counts.total:,} ({trainable})"
    yield (
        "shape",
        (
            f"{plan.config.model_type}: {shape.layers} layers × {shape.hidden}, {shape.heads} heads "
            f"({shape.kv_heads} of keys and values) × {shape.head_size}, FFN {shape.ffn}, vocabulary {shape.vocab:,}"
        ),
    )
    yield "context", "without limit" if shape.context is None else f"{shape.context:,} tokens"
    yield "prompt", f"{plan.prompt_tokens} tokens ({plan.prompt_source})"


def _processes(plan: Plan) -> Rows:
    layout = plan.layout
    yield "ranks", f"{layout.ranks} (nodes {layout.nodes}, devices {layout.devices})"
    yield "strategy", f"{layout.strategy}: {'sharded over the ranks' if layout.sharded else 'a full copy a rank'}"
    yield "precision", f"{layout.precision}, policy {plan.parts.module.policy_settings.dtype}"
    for note in layout.notes:
        yield "note", note


def _batches(plan: Plan, counts: list[tuple[str, int, int]]) -> str:
    lines = [f"{'one iteration':<30}{'a rank':>16}{'all ranks':>16}"]
    lines += [f"  {what:<28}{rank:>16,}{total:>16,}" for what, rank, total in counts]
    iterations, problems = plan.parts.data.iterations, counts[0][2]
    whole = f"{iterations:,} iterations over {iterations * problems:,} {counts[0][0]}"
    if plan.train.problems:
        whole += f", {iterations * problems / len(plan.train.problems):.2f} times the training set"
    return "\n".join([*lines, f"  the run: {whole}"])


def _memory(items: list[Item]) -> str:
    lines = ["memory of a rank, estimated"]
    for phase, title in PHASES.items():
        rows = [item for item in items if item.phase == phase]
        if rows:
            lines.append(f"  {title:<20}{format_bytes(sum(item.bytes for item in rows)):>12}")
        lines += [f"    {item.name:<18}{format_bytes(item.bytes):>12}  {item.formula}" for item in rows]
    return "\n".join([*lines, f"  {'peak':<20}{format_bytes(peak(items)):>12}  held, and the larger of the two phases"])


def _warnings(warnings: list[str]) -> str:
    return "\n".join(["warnings", *(f"  - {line}" for line in warnings or ["none"])])


def _section(title: str, rows: Rows) -> str:
    return "\n".join([title, *(f"  {name:<14}{value}" for name, value in rows)])
