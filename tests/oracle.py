"""Engines that know the answers: they show what evaluation makes of completions that are right, or wrong, for sure."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from app.engines.engine import Completion, GenerationRequest, PolicyOwner

WRONG = "-86753.25"


class OracleEngine:
    """Answers each problem of the JSON-lines files in ``folder`` with its gold answer in a box.

    Args:
        folder: of the files.
        wrong: answer wrongly instead.
        alternate: the i-th completion of a prompt is wrong where i is odd.
        log: gets the prompt of every request, one JSON string a line.
        stall_after: the call after so many never returns.
    """

    def __init__(
        self,
        folder: str,
        wrong: bool = False,
        alternate: bool = False,
        log: str | None = None,
        stall_after: int | None = None,
    ) -> None:
        self.wrong, self.alternate, self.log, self.stall_after = wrong, alternate, log, stall_after
        self.calls = 0
        rows = [json.loads(line) for path in sorted(Path(folder).glob("*.jsonl")) for line in path.open("rb")]
        self.golds = {_key(row["problem"]): str(row["answer"]) for row in rows if row}

    def start(self, module: PolicyOwner) -> None:
        self.tokenizer = module.tokenizer

    def sync(self, module: PolicyOwner) -> None: ...

    def close(self) -> None: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        prompts = [self.tokenizer.decode(request.prompt_ids) for request in requests]
        if self.log is not None:
            with Path(self.log).open("a") as log:
                log.writelines(json.dumps(prompt) + "\n" for prompt in prompts)
        self.calls += 1
        if self.stall_after is not None and self.calls > self.stall_after:
            time.sleep(3600)
        return [
            [self._completion(prompt, request, index) for index in range(request.n)]
            for prompt, request in zip(prompts, requests, strict=True)
        ]

    def _completion(self, prompt: str, request: GenerationRequest, index: int) -> Completion:
        gold = self.golds[_key(prompt.removeprefix("Question: ").partition("\nPlease reason step by step")[0])]
        answer = WRONG if self.wrong or (self.alternate and index % 2) else gold
        ids = self.tokenizer(f"So the answer is \\boxed{{{answer}}}.", add_special_tokens=False)["input_ids"]
        ids = [*ids, request.end_token_ids[0]]
        return Completion(ids, [0.0] * len(ids), "stop")


def _key(text: str) -> str:
    return " ".join(text.split())
