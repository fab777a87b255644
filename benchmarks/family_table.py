"""The page that a sweep over families writes."""

from collections.abc import Sequence

from app.evaluation.results import versions

HEAD = """# Families of models

What `{command}` found: small models with random weights, of each family that transformers knows, on a CPU ({versions}).
**ok** is right; **refused** is one line, numbered below, before anything slow; **X** is wrong. A dash was not run.

- log-probs: a ragged batch against each row alone. engine: what the transformers engine draws, against rows whole.
- fit and export: the export has all of the policy's state, bit for bit, as transformers reads it. lora: the merged
  export is read whole. gradient checkpointing, fsdp2 (one gloo rank): the weights that one plain process trains.
- vllm: a run whose syncs are proved by fingerprints and whose first rollout is compared with the trainer.

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
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return HEAD.format(command=command, versions=named) + "\n".join([*lines, "", *numbered]) + "\n"
