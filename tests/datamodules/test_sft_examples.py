"""The supervised stage's batches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.data import synthetic
from app.data.prompts import PromptSettings
from app.data.sources import JsonLinesSource, SyntheticSource
from app.errors import ConfigurationError
from datamodules import SFTDataModule
from tests.data.files import write_json_lines
from tests.data.tokenizers import subword_tokenizer
from tests.datamodules.learners import Recorder, trainer


def test_a_run_sees_demonstrations_of_the_training_split() -> None:
    module = Recorder()
    data = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=8, iterations=3)
    trainer().fit(module, data)
    assert [index for index, _ in module.seen] == [0, 1, 2]
    for _, (_, input_ids, labels, mask) in module.seen:
        assert len(input_ids) == 8
        for ids, taught, real in zip(input_ids, labels, mask, strict=True):
            text = module.tokenizer.decode(ids[: sum(real)])
            problem, completion = text.removeprefix("<user>").split("<assistant>")
            assert not synthetic.is_heldout(problem)
            assert completion == synthetic.demonstration(problem, 0) + "<eos>"
            assert [label for label in taught if label != -100] == module.tokenizer(completion)["input_ids"]


def test_solutions_of_a_file_can_be_rewritten(tmp_path: Path) -> None:
    path = write_json_lines(
        tmp_path / "a.jsonl", [{"problem": "2 + 2 ?", "answer": "4", "solution": "It is 4.\n#### 4"}]
    )
    module = Recorder(tokenizer=subword_tokenizer())
    data = SFTDataModule(
        JsonLinesSource(path),
        batch_size=2,
        iterations=2,
        prompt=PromptSettings(style="boxed"),
        completion_template=" {solution} \\boxed{{answer}}",
    )
    trainer().fit(module, data)
    text = module.tokenizer.decode(module.seen[0][1][1][0])
    assert text.startswith("Question: 2 + 2 ?\n")
    assert text.endswith("Answer: It is 4.\n#### 4 \\boxed{4}</s>")


def test_overlong_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"id": name, "problem": "p" * size, "answer": "4", "solution": "s" * length} for name, size, length in
            (("short", 5, 5), ("long prompt", 30, 5), ("long solution", 5, 90))]  # fmt: skip
    source = JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", rows))
    prompt = PromptSettings(max_prompt_tokens=20)
    data = SFTDataModule(source, batch_size=2, iterations=2, prompt=prompt, max_tokens=60)
    module = Recorder(tokenizer=subword_tokenizer())
    trainer().fit(module, data)
    assert source.report.left_out == {"prompt over 20 tokens": 1, "example over 60 tokens": 1}
    assert {module.tokenizer.decode(ids) for _, seen in module.seen for ids in seen[1]} == {"pppppsssss</s>"}


def test_a_source_without_solutions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"solution_column: .* no text in its column 'solution'"):
        trainer().fit(Recorder(), SFTDataModule(SyntheticSource(), batch_size=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size"),
        ({"max_tokens": 0}, r"data\.max_tokens"),
        ({"completion_template": "yes"}, "completion_template"),
    ],
)
def test_impossible_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer().fit(Recorder(), SFTDataModule(SyntheticSource(demonstrations=True), **changes))


def test_batches_are_moved_to_the_device() -> None:
    data = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=2, iterations=2)
    module = Recorder()
    trainer().fit(module, data)
    moved = data.transfer_batch_to_device(data.train_batch(0), torch.device("meta"), 0)
    assert moved.input_ids.device.type == "meta"
