"""The supervised loss against torch's cross-entropy over whole float32 logits, and what it allocates."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.data.sft import SFTBatch, collate
from app.dry_run import memory
from app.dry_run.memory import MicroBatch, Numbers, ParameterCounts, Shape, training_items
from app.policy import head_log_probs, logprobs
from app.policy.head import HEAD
from app.policy.head_log_probs import OutputHead
from app.policy.models import load_policy
from modules.sft import SFTModule
from tests.running import policy_settings

EXAMPLES = [([5, 6, 7], [8, 9, 10, 11, 12]), ([20] * 9, [21]), ([30, 31], [32, 33, 34])]
ALL = slice(None)


def make(**changes: Any) -> SFTModule:
    settings = replace(policy_settings(), **changes)
    module = SFTModule(settings)
    module.policy = load_policy(settings, 3).train()
    return module


def cross_entropy(module: SFTModule, batch: SFTBatch) -> tuple[torch.Tensor, torch.Tensor]:
    logits = module.policy(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = batch.labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss, (logits.argmax(-1) == labels).sum()


def gradients(module: SFTModule, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.policy.named_parameters()}


@pytest.mark.parametrize("chunk", [1, 200, 2**22])
@pytest.mark.parametrize("head", [None, OutputHead()], ids=["logits", "hidden"])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_loss_accuracy_and_gradient_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, chunk: int, head: OutputHead | None, dtype: torch.dtype, precision: float
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(head_log_probs, "TILE_ELEMENTS", chunk)
    module, batch = make(), collate(EXAMPLES, padding_id=0)
    module.policy.to(dtype)
    setattr(module.policy, HEAD, head)
    expected, expected_right = cross_entropy(module, batch)
    expected_gradients = gradients(module, expected)
    loss, right = module._summed_loss(batch, ALL)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert float(loss) == pytest.approx(float(expected), rel=precision)
    assert int(right) == int(expected_right)
    for name, gradient in gradients(module, loss).items():
        error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert float(error) < precision, name


def test_parts_add_up_to_the_whole() -> None:
    module, batch = make(), collate(EXAMPLES, padding_id=0)
    with torch.no_grad():
        parts = [module._summed_loss(batch, slice(row, row + 1)) for row in range(3)]
        whole = cross_entropy(module, batch)
    for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(sum(part), expected, rtol=1e-6, atol=0)


def test_the_first_example_is_shown_once_with_what_is_learned_of_it(caplog: pytest.LogCaptureFixture) -> None:
    module = make()
    prompt, target = module.tokenizer("3+4=").input_ids, module.tokenizer("7").input_ids
    batch = collate([(prompt, target), (prompt * 2, target * 9)], padding_id=0, step=4)
    with caplog.at_level("INFO"):
        module.on_train_batch_start(batch, 0)
        module.on_train_batch_start(batch, 1)
    assert caplog.text.count("the first example of step 5") == 1
    shown = caplog.text[caplog.text.index("the first example") :].splitlines()[1:]
    assert shown[0].split() == ["prompt", repr("3+4=")]
    assert shown[2].split() == ["target", repr("7")]


class LogitsMade(TorchDispatchMode):
    """Every storage of tensors whose rows are as wide as the vocabulary."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.storages: dict[int, tuple[torch.dtype, torch.UntypedStorage]] = {}  # kept: addresses stay unique

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.vocab:
                self.storages[tensor.untyped_storage().data_ptr()] = tensor.dtype, tensor.untyped_storage()
        return made


def test_float32_exists_in_chunks_alone_and_the_dry_run_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the logits themselves and their gradient are whole: of the columns after the shortest prompt."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 3 * 72)
    module, batch = make(dtype="bfloat16"), collate(EXAMPLES, padding_id=0)
    with LogitsMade(72) as made:
        module._summed_loss(batch, ALL)[0].backward()
    chunk, head = 3 * 72 * 4, module.policy.lm_head.weight.nbytes
    sizes = [(dtype, storage.nbytes()) for dtype, storage in made.storages.values()]
    columns = batch.input_ids.shape[1] - 2
    whole = (torch.bfloat16, 3 * columns * 72 * 2)
    assert [size for size in sizes if size[1] > chunk and size[1] != head] == [whole, whole]
    monkeypatch.setattr(memory, "CHUNK_ELEMENTS", 3 * 72)
    shape, counts = Shape.of(module.policy.config), ParameterCounts(0, 0, 0, 0, 0, 0)
    micro_batch = MicroBatch(3, columns + 2, columns, checkpointing=False, whole_logits=True)
    assert training_items(micro_batch, shape, Numbers(2), counts)[1].bytes == 2 * whole[1] + 3 * chunk


def test_the_loss_waits_for_no_device() -> None:
    """Reading a value would fail on the meta device."""
    module = SFTModule(policy_settings())
    module.policy = lambda logits_to_keep, **_: SimpleNamespace(
        logits=torch.empty(3, logits_to_keep, 72, device="meta")
    )
    loss, right = module._summed_loss(collate(EXAMPLES, padding_id=0).to(torch.device("meta")), ALL)
    assert loss.is_meta
    assert right.is_meta
