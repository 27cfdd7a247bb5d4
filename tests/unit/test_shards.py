"""Files of pieces that are missing, damaged, or do not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers import shards
from trainers.shards import Piece, ShardError, ShardFile, Shards


def written(folder: Path, *pieces: Piece, name: str = "a.arrow") -> ShardFile:
    return shards.write(str(folder), name, pieces)


def piece(
    start: int = 0, length: int = 6, shape: tuple[int, ...] = (2, 3), dtype: torch.dtype = torch.float32
) -> Piece:
    return Piece("model", "weight", shape, start, torch.arange(start, start + length).to(dtype))


def test_any_changed_byte_is_found_and_the_file_is_named(tmp_path: Path):
    file = written(tmp_path, piece())
    path = tmp_path / file.name
    sound = path.read_bytes()
    for place in range(0, len(sound), 23):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(ShardError, match=r"a\.arrow"):
            Shards.open(str(tmp_path), [file])


def test_a_truncated_file_is_found_without_reading_it(tmp_path: Path):
    file = written(tmp_path, piece())
    sound = (tmp_path / file.name).read_bytes()
    for length in (0, 8, len(sound) // 2, len(sound) - 1):
        (tmp_path / file.name).write_bytes(sound[:length])
        with pytest.raises(ShardError, match=rf"a\.arrow has {length} bytes, {len(sound)} were written"):
            Shards.open(str(tmp_path), [file], verify=False)


def test_a_missing_file_is_named(tmp_path: Path):
    file = written(tmp_path, piece())
    (tmp_path / file.name).unlink()
    for verify in (True, False):
        with pytest.raises(ShardError, match=r"a\.arrow"):
            Shards.open(str(tmp_path), [file], verify=verify)


def test_what_is_no_file_of_pieces_is_said_to_be_damaged(tmp_path: Path):
    for content in (b"", b"not arrow", bytes(200)):
        (tmp_path / "a.arrow").write_bytes(content)
        with pytest.raises(ShardError, match=r"a\.arrow is damaged"):
            Shards.open(str(tmp_path), [ShardFile("a.arrow", len(content), "")], verify=False)


def test_elements_that_no_file_holds_are_named(tmp_path: Path):
    first, last = written(tmp_path, piece(0, 2)), written(tmp_path, piece(4, 2), name="b.arrow")
    with pytest.raises(ShardError, match=r"model weight: no file holds elements \[2, 4\)"):
        Shards.open(str(tmp_path), [first, last])
    with pytest.raises(ShardError, match=r"no file holds elements \[2, 6\)"):
        Shards.open(str(tmp_path), [first])


def test_elements_that_two_files_hold_are_named(tmp_path: Path):
    files = [written(tmp_path, piece(0, 4)), written(tmp_path, piece(3, 3), name="b.arrow")]
    with pytest.raises(ShardError, match="two pieces hold element 3"):
        Shards.open(str(tmp_path), files)


def test_files_that_disagree_about_a_tensor_are_named(tmp_path: Path):
    files = [written(tmp_path, piece(0, 3)), written(tmp_path, piece(3, 3, (6,)), name="b.arrow")]
    with pytest.raises(ShardError, match=r"b\.arrow holds model weight as torch\.float32 \[6\], another .* \[2, 3\]"):
        Shards.open(str(tmp_path), files)


def test_what_is_not_there_cannot_be_read(tmp_path: Path):
    read = Shards.open(str(tmp_path), [written(tmp_path, piece())])
    with pytest.raises(ShardError, match="no bias in model"):
        read.read("model", "bias")
    with pytest.raises(ShardError, match=r"has 6 elements, asked for \[4, 9\)"):
        read.read("model", "weight", 4, 5)
    assert read.names("counters") == [] and read.whole("counters") == {}


def test_a_piece_outside_its_tensor_is_not_written(tmp_path: Path):
    with pytest.raises(ShardError, match=r"has 6 elements, a piece of it is \[4, 10\)"):
        written(tmp_path, piece(4, 6))
    with pytest.raises(ShardError, match=r"has dtype torch\.complex64"):
        written(tmp_path, piece(dtype=torch.complex64))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = written(tmp_path, piece())
    monkeypatch.setattr(shards.os, "fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        written(tmp_path, piece(dtype=torch.float64))
    monkeypatch.undo()
    assert Shards.open(str(tmp_path), [file]).read("model", "weight").dtype == torch.float32


def test_folders_may_be_uris(tmp_path: Path):
    folder = f"file://{tmp_path}/deep/folder"
    file = shards.write(folder, "a.arrow", [piece()])
    assert Shards.open(folder, [file]).read("model", "weight", 2, 3).tolist() == [2, 3, 4]
