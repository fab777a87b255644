"""What is not what was written is noticed: every bit of an archive, every file of a folder."""

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from app.storage.checksums import (
    LIST,
    archive_fingerprint,
    check_archive,
    check_folder,
    file_checksum,
    list_files,
    write_list,
)


def content(value: float = 1.0) -> dict[str, Any]:
    return {"state_dict": {"a": torch.full((40, 3), value), "b": torch.arange(7)}, "loops": {"done": 3}}


def test_a_flipped_bit_is_named_or_changes_nothing(tmp_path: Path) -> None:
    """1,000 of all bits, drawn by a seed. What is between records (padding, copies of names) is not part of them."""
    path, spoilt = tmp_path / "whole.ckpt", tmp_path / "spoilt.ckpt"
    torch.save(content(), path)
    assert check_archive(path) is None
    original = path.read_bytes()
    noticed = 0
    for bit in random.Random(1).sample(range(8 * len(original)), 1000):
        changed = bytearray(original)
        changed[bit // 8] ^= 1 << bit % 8
        spoilt.write_bytes(changed)
        if check_archive(spoilt) is not None:
            noticed += 1
            continue
        try:
            loaded = torch.load(spoilt, weights_only=True)
        except RuntimeError:  # a header that Python's reader passes over
            continue
        assert loaded["loops"] == content()["loops"]
        assert all(torch.equal(loaded["state_dict"][name], content()["state_dict"][name]) for name in ("a", "b"))
    assert noticed > 300


def test_the_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(content(), path)
    with zipfile.ZipFile(path) as archive:
        record = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
    spoilt = bytearray(path.read_bytes())
    start = spoilt.index(torch.full((40, 3), 1.0).numpy().tobytes(), record.header_offset)
    spoilt[start : start + 64] = bytes(64)
    path.write_bytes(spoilt)
    assert torch.load(path, weights_only=True)["state_dict"]["a"].sum() != 120  # torch says nothing
    assert check_archive(path) == "is damaged: its record data/0 is not what was written"
    assert check_archive(path, contents=False) is None


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[: len(data) // 2], "ends early or is damaged"),
        (lambda data: b"weights", "is no checkpoint: torch.save did not write it"),
        (lambda data: data[:-30] + bytes(30), "ends early or is damaged"),
    ],
)
def test_what_is_no_whole_archive_is_told_apart(tmp_path: Path, spoil: Any, expected: str) -> None:
    torch.save(content(), tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(spoil((tmp_path / "last.ckpt").read_bytes()))
    for contents in (True, False):
        assert (check_archive(tmp_path / "last.ckpt", contents) or "").startswith(expected)


def test_another_kind_of_archive_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "last.ckpt", "w") as archive:
        archive.writestr("letter.txt", "dear reader")
    assert check_archive(tmp_path / "last.ckpt") == "is no checkpoint: it is another kind of archive"


def test_fingerprints_are_of_the_content(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        torch.save(content(value), tmp_path / name)
    one, same, other = (archive_fingerprint(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    (folder / "adapter").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "adapter/model.safetensors"):
        (folder / name).write_bytes(name.encode() * 100)
    write_list(folder, list_files(folder))
    return folder


def test_the_checksum_of_a_file_is_crc_32(tmp_path: Path) -> None:
    (tmp_path / "check").write_bytes(b"123456789")
    assert file_checksum(tmp_path / "check") == "cbf43926"  # the check value of CRC-32/ISO-HDLC


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "adapter/model.safetensors"])
def test_files_of_a_folder_that_lack_or_differ_are_named(listed: Path, name: str) -> None:
    assert check_folder(listed) is None
    spoilt = bytearray((listed / name).read_bytes())
    spoilt[50] ^= 1
    (listed / name).write_bytes(spoilt)
    assert check_folder(listed) == f"is damaged: {name} is not what was written (its checksum differs)"
    assert check_folder(listed, contents=False) is None
    (listed / name).write_bytes(spoilt[:-1])
    assert f"is damaged: {name} has" in str(check_folder(listed, contents=False))
    (listed / name).unlink()
    assert check_folder(listed, contents=False) == f"lacks {name}, which {LIST} names"


def test_a_damaged_list_is_named_and_a_folder_without_one_is_not_judged(listed: Path) -> None:
    (listed / LIST).write_text("{")
    assert f"has a damaged {LIST}" in str(check_folder(listed))
    (listed / LIST).unlink()
    assert check_folder(listed) is None
