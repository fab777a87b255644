"""Files and folders that are there whole or not at all."""

import errno
import os
import threading
from pathlib import Path

import pytest

from app.storage import durable
from app.storage.durable import clear_unfinished, install, link, unfinished, write_bytes, write_whole


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_folder_is_there_at_any_time_while_others_take_its_place(tmp_path: Path) -> None:
    target, done, missing = folder(tmp_path / "hf", "0"), threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            try:
                (target / "file").read_text()
            except OSError as error:
                missing.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(300):
        install(folder(tmp_path / "fresh", str(turn)), target)
    done.set()
    watcher.join()
    assert missing == []
    assert (target / "file").read_text() == "299"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_where_a_system_cannot_exchange_folders_the_former_one_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable.ctypes, "CDLL", lambda *_, **__: object())
    install(folder(tmp_path / "fresh", "new"), folder(tmp_path / "hf", "old"))
    assert (tmp_path / "hf" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_kill_while_the_former_one_is_aside_does_not_lose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable.ctypes, "CDLL", lambda *_, **__: object())
    fresh, target = folder(unfinished(tmp_path / "hf"), "new"), folder(tmp_path / "hf", "old")
    rename = os.rename

    def killed(one: Path, other: Path) -> None:
        if Path(one) == fresh:
            raise KeyboardInterrupt  # stands for a kill: nothing is cleaned up after it
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            install(fresh, target)
    assert not target.exists()
    clear_unfinished(tmp_path, "hf")
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_file_may_take_the_place_of_a_folder_and_a_folder_that_of_a_file(tmp_path: Path) -> None:
    target = tmp_path / "best.ckpt"
    for turn in range(2):
        install(folder(tmp_path / "fresh", "shards"), target)
        assert (target / "file").read_text() == "shards"
        (tmp_path / "fresh").write_text(str(turn))
        install(tmp_path / "fresh", target)
        assert target.read_text() == str(turn)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_what_cannot_be_written_leaves_the_former_content_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "out" / "results.json", b"former")

    def full_disk(fresh: Path) -> None:
        fresh.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(fresh))

    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "out" / "results.json", full_disk)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]
    assert (tmp_path / "out" / "results.json").read_bytes() == b"former"


def test_all_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened, fsync, replace = [], os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_replace(one: Path, other: Path) -> None:
        happened.append(f"{Path(one).name} → {Path(other).name}")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    install(folder(tmp_path / "fresh", "new"), tmp_path / "hf")
    assert happened == ["file", "fresh", "fresh → hf", tmp_path.name]


def test_a_link_is_moved_in_one_step_and_leftovers_of_kills_are_cleared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        link(tmp_path / name, tmp_path / "last")
    assert os.readlink(tmp_path / "last") == "two"
    (tmp_path / "last.unfinished").symlink_to("nowhere")
    folder(unfinished(tmp_path / "hf"), "half")
    assert [path.name for path in clear_unfinished(tmp_path)] == ["hf.unfinished", "last.unfinished"]
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
