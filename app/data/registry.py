"""The usual datasets of math reasoning: where they are, how their columns are called, what is odd."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.data.rows import AnswerFormat


@dataclass(frozen=True)
class Registered:
    """One dataset.

    Attributes:
        name: as users write it.
        hub_id: of the dataset on the hub.
        split: of the hub's dataset.
        config: of the hub's dataset, where it has several.
        revision: branch, tag or commit on the hub. A branch moves: pin a commit with ``revision`` where runs
            must be repeatable.
        columns: our names → the hub's.
        answer_format: of the hub's answer column.
        files: split → names under which the dataset may lie in a folder of JSON-lines files. Such files have
            the columns ``problem`` and ``answer``.
        file_answer_format: of the answers in those files.
    """

    name: str
    hub_id: str
    split: str
    config: str | None = None
    revision: str = "main"
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_format: AnswerFormat = "plain"
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    file_answer_format: AnswerFormat = "plain"

    def file_names(self, split: str) -> tuple[str, ...]:
        """Names to look for in a folder, the likeliest first; a file without a split's name is the registered one."""
        unnamed = (f"{self.name}.jsonl",) if split == self.split else ()
        return tuple(dict.fromkeys((*self.files.get(split, ()), f"{self.name}_{split}.jsonl", *unnamed)))


_QUESTION = {"problem": "question"}

_ENTRIES = (
    # The answer column is a worked solution that ends in "#### 1,234".
    Registered(
        "gsm8k",
        "openai/gsm8k",
        "train",
        config="main",
        columns={"problem": "question", "solution": "answer"},
        answer_format="after_hashes",
        files={"train": ("gsm8k_train.jsonl",), "test": ("gsm8k_test.jsonl",)},
    ),
    # MATH without MATH-500: 7,500 training rows and 4,500 of the old test rows.
    Registered("math12k", "hiyouga/math12k", "train", files={"train": ("math_train.jsonl",)}),
    Registered(
        "math500",
        "HuggingFaceH4/MATH-500",
        "test",
        columns={"id": "unique_id"},
        files={"test": ("math500.jsonl",)},
    ),
    # Answers are integers from 000 to 999, written with leading zeros by some copies.
    Registered(
        "aime24",
        "HuggingFaceH4/aime_2024",
        "train",
        answer_format="integer",
        files={"train": ("aime24.jsonl",)},
        file_answer_format="integer",
    ),
    Registered(
        "aime25",
        "math-ai/aime25",
        "test",
        answer_format="integer",
        files={"test": ("aime25.jsonl",)},
        file_answer_format="integer",
    ),
    # Answers are floats such as 27.0.
    Registered(
        "amc23",
        "math-ai/amc23",
        "test",
        columns=_QUESTION,
        answer_format="integer",
        files={"test": ("amc23.jsonl",)},
        file_answer_format="integer",
    ),
    Registered(
        "amc",
        "AI-MO/aimo-validation-amc",
        "train",
        answer_format="integer",
        files={"train": ("amc.jsonl",)},
        file_answer_format="integer",
    ),
    # Lists of answers; some rows have a unit of their own, a tolerance (error) or several answers.
    Registered(
        "olympiadbench",
        "Hothan/OlympiadBench",
        "train",
        config="OE_TO_maths_en_COMP",
        columns={"problem": "question", "answer": "final_answer", "subject": "subfield"},
        answer_format="list",
        files={"train": ("olympiadbench_math.jsonl", "olympiadbench.jsonl")},
    ),
    # Copies of this set with a rewritten answer column are about: compare scores only on the same copy.
    Registered(
        "minerva",
        "math-ai/minervamath",
        "test",
        columns=_QUESTION,
        files={"test": ("minerva_math.jsonl", "minerva.jsonl")},
    ),
    # The deduplicated form; the original repeats each of its rows a hundred times.
    Registered(
        "dapo17k",
        "open-r1/DAPO-Math-17k-Processed",
        "train",
        config="all",
        columns={"problem": "prompt", "answer": "solution"},
        files={"train": ("dapo_17k.jsonl", "dapo17k.jsonl")},
    ),
    # Rows are conversations: the problem is the first turn, the answer the ground truth of the second.
    Registered(
        "orz57k",
        "Open-Reasoner-Zero/orz_math_57k_collection",
        "train",
        columns={"problem": "0.value", "answer": "1.ground_truth.value"},
        files={"train": ("orz57k.jsonl",)},
    ),
    Registered(
        "deepscaler",
        "agentica-org/DeepScaleR-Preview-Dataset",
        "train",
        files={"train": ("deepscaler.jsonl",)},
    ),
)

REGISTRY: Mapping[str, Registered] = {entry.name: entry for entry in _ENTRIES}
