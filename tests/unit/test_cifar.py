"""CIFAR-10: the archive's records, the JPEG copy, and what is said of files that are missing or damaged."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from trainers.data import DataError, cifar, load


def records(labels: list[int]) -> bytes:
    rows = [bytes([label]) + bytes([label]) * 1024 + bytes([1]) * 1024 + bytes(range(256)) * 4 for label in labels]
    return b"".join(rows)


def test_a_record_is_a_label_and_three_planes() -> None:
    x, y = cifar.read_records(io.BytesIO(records([3, 9])), "two", 2)
    assert x.shape == (2, 3, 32, 32) and y.tolist() == [3, 9]
    assert (
        (x[1, 0] == 9).all() and (x[1, 1] == 1).all() and x[0, 2].flatten()[:300].tolist() == [*range(256), *range(44)]
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (records([3]), "two holds 3073 bytes, expected 6146"),
        (records([3, 4, 5]), "two holds more bytes, expected 6146"),
        (records([3, 11]), "two has label 11, expected 0 to 9"),
    ],
)
def test_records_that_are_none_are_refused(content: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        cifar.read_records(io.BytesIO(content), "two", 2)


def test_the_archive_is_read_without_unpacking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / cifar.FILE.path
    path.parent.mkdir()
    monkeypatch.setattr(cifar, "_EACH", 2)
    monkeypatch.setattr(cifar.read_records, "__defaults__", (2,))
    monkeypatch.setattr(cifar, "ensure", lambda folder, file, timeout_s: path)
    with tarfile.open(path, "w:gz") as archive:
        for name in (f"data_batch_{number}.bin" for number in range(1, 6)):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            content = records([int(name[-5]), 0])
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/test_batch\.bin"):
        load({"name": "cifar-10", "folder": str(tmp_path)}, seed=0)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="is damaged"):
        load({"name": "cifar-10", "folder": str(tmp_path)}, seed=0)


def test_jpeg_files_are_decoded_from_their_common_header_and_bodies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    files = []
    for level in (10, 200):
        out = io.BytesIO()
        image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(out, "JPEG", quality=75)
        files.append(out.getvalue())
    common = 100
    assert files[0][:common] == files[1][:common]
    bodies = [file[common:] for file in files]
    arrays = {
        "jpeg_header": np.frombuffer(files[0][:common], np.uint8),
        "jpeg_body": np.frombuffer(b"".join(bodies), np.uint8),
        "offsets": np.cumsum([0, *map(len, bodies)]).astype(np.int32),
        "labels": np.array([4, 7], np.uint8),
    }
    (tmp_path / "cifar10").mkdir()
    for path, _ in cifar.JPEG_FILES:
        np.savez(tmp_path / path, **arrays)
    found = load({"name": "cifar-10-jpeg", "folder": str(tmp_path)}, seed=0)
    assert found.train_x.shape == (2, 3, 32, 32) and found.test_y.tolist() == [4, 7]
    assert abs(int(found.train_x[0].mean()) - 10) <= 1 and abs(int(found.train_x[1].mean()) - 200) <= 1
    np.savez(tmp_path / cifar.JPEG_FILES[1][0], **{**arrays, "offsets": arrays["offsets"] + 5})
    with pytest.raises(DataError, match=r"cifar10_test10k_jpeg\.npz"):
        load({"name": "cifar-10-jpeg", "folder": str(tmp_path)}, seed=0)


def test_a_copy_that_is_missing_says_what_its_files_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10_train30k_jpeg\.npz is missing") as refused:
        load({"name": "cifar-10-jpeg", "folder": str(tmp_path)}, seed=0)
    assert "data.name=cifar-10" in refused.value.hint and "jpeg_header" in refused.value.hint
