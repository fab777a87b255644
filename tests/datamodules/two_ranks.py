"""Two processes under DDP: each writes down what it was given. Run by ``test_two_ranks.py``."""

import json
import sys
from pathlib import Path

from app.data.sources import HubSource, JsonLinesSource, SyntheticSource
from app.errors import ConfigurationError
from datamodules import MathPromptDataModule
from datamodules.base import BenchmarkSettings
from tests.datamodules.learners import Recorder, RewardsAlone, trainer


def main(folder: Path) -> None:
    streamed = HubSource("json", data_files=[str(folder / "train.jsonl")], streaming=True, shuffle_buffer=3)
    whole = JsonLinesSource(str(folder / "golds.jsonl"))
    for name, source in (("synthetic", SyntheticSource()), ("streamed", streamed), ("whole", whole)):
        module = Recorder()
        data = MathPromptDataModule(
            source,
            {"heldout": BenchmarkSettings(SyntheticSource("heldout", size=5))},
            prompts_per_iteration=4,
            iterations=2,
            benchmark_batch_size=2,
        )
        owner = trainer([RewardsAlone(group_size=2)], devices=2, strategy="ddp")
        owner.fit(module, data)
        validated = [
            [batch.first_index, [problem.id for problem in batch.problems]] for _, _, batch in module.validated
        ]
        written = {"seen": module.seen, "validated": validated}
        (folder / f"{name}{owner.global_rank}.json").write_text(json.dumps(written))
    # Last, for Lightning ends the other rank when one fails.
    try:
        trainer(devices=2, strategy="ddp").fit(
            Recorder(), MathPromptDataModule(SyntheticSource(), prompts_per_iteration=3)
        )
    except ConfigurationError as error:
        (folder / "refusal.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
