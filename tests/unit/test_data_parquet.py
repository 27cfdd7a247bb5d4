"""Tables of users: what columns become, where they are cached, and what is said of those that cannot be used."""

from __future__ import annotations

import pickle
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.data import DataError, load, to_tensor
from trainers.data.tables import _bounded, _without_secrets, batches, find

NUM_ROWS = 50
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=NUM_ROWS).astype(np.float32), RNG.normal(size=NUM_ROWS)
LABELS = np.arange(NUM_ROWS) % 3
NAMES = np.array(["wolf", "ant", "mole"])[LABELS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parquet"


def columns(**changes):
    return {"a": A, "b": B, "label": LABELS, **changes}


def write(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, **options)
    return str(path)


def section(path, **changes):
    return {"name": "parquet", "path": str(path), "features": ["a", "b"], "label": "label", **changes}


def rows(data):
    """All rows, training and test, in the order of their first feature."""
    x, y = np.concatenate([data.train_x, data.test_x]), np.concatenate([data.train_y, data.test_y])
    order = np.argsort(x[:, 0])
    return x[order], y[order]


def test_columns_of_numbers_become_features(tmp_path) -> None:
    data = load(section(write(tmp_path / "t.parquet", columns())), seed=0)
    x, y = rows(data)
    order = np.argsort(A)
    assert np.array_equal(x, np.c_[A, B][order]) and np.array_equal(y, LABELS[order])
    assert (len(data.train_x), len(data.test_x)) == (40, 10)
    assert data.input_shape == (2,) and data.num_classes == 3 and data.scale is None
    assert data.train_x.dtype == np.float64  # b is


def test_the_held_out_rows_are_the_same_for_every_seed(tmp_path) -> None:
    path = write(tmp_path / "t.parquet", columns())
    first, second = load(section(path), seed=1), load(section(path), seed=2)
    assert np.array_equal(first.test_x, second.test_x)
    assert len(load(section(path, test_fraction=0.5), seed=1).test_x) == 25


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.float32(), np.float32), (pa.float16(), np.float32), (pa.int16(), np.float32), (pa.uint8(), np.float32),
        (pa.bool_(), np.float32), (pa.int32(), np.float64), (pa.int64(), np.float64),
        (pa.decimal128(12, 2), np.float64),
    ],
)  # fmt: skip
def test_numbers_keep_their_value_in_the_smallest_float_that_is_exact(tmp_path, kind, dtype) -> None:
    values = pa.array(np.arange(NUM_ROWS) % 2 == 0).cast(pa.int32()).cast(kind)
    data = load(section(write(tmp_path / "t.parquet", columns(a=values)), features="a"), seed=0)
    assert data.train_x.dtype == dtype
    assert sorted(np.concatenate([data.train_x, data.test_x]).ravel()) == [0.0] * 25 + [1.0] * 25


@pytest.mark.parametrize("kind", [pa.list_(pa.uint8()), pa.list_(pa.uint8(), 12), pa.large_list(pa.uint8())])
def test_lists_of_bytes_are_images(tmp_path, kind) -> None:
    pixels = RNG.integers(0, 256, (NUM_ROWS, 12)).astype(np.uint8)
    path = write(tmp_path / "t.parquet", {"x": pa.array(pixels.tolist(), kind), "label": LABELS}, row_group_size=7)
    data = load(section(path, features="x", shape=[3, 4]), seed=0)
    assert data.train_x.dtype == np.uint8 and data.input_shape == (1, 3, 4)
    assert {row.tobytes() for row in [*data.train_x, *data.test_x]} == {row.tobytes() for row in pixels}
    made = to_tensor(data.train_x[:5], data, __import__("torch").float64)
    assert made.shape == (5, 1, 3, 4)
    assert np.allclose(made.numpy().reshape(5, 12), data.train_x[:5] / 255)


def test_fixed_shape_tensors_are_lists_of_their_values(tmp_path) -> None:
    values = RNG.normal(size=(NUM_ROWS, 2, 3)).astype(np.float32)
    path = write(tmp_path / "t.parquet", {"x": pa.FixedShapeTensorArray.from_numpy_ndarray(values), "label": LABELS})
    data = load(section(path, features="x"), seed=0)
    assert data.train_x.shape == (40, 6) and data.train_x.dtype == np.float32


@pytest.mark.parametrize("encode", [pa.array, lambda values: pa.array(values).dictionary_encode()])
def test_texts_become_classes_in_sorted_order(tmp_path, encode) -> None:
    data = load(section(write(tmp_path / "t.parquet", columns(label=encode(NAMES)))), seed=0)
    assert data.class_names == ("ant", "mole", "wolf")
    order = np.argsort(A)
    assert [data.class_names[code] for code in rows(data)[1]] == NAMES[order].tolist()


@pytest.mark.parametrize(
    "values",
    [["b", "a", "c"], [10, 9, 200], [date(2020, 1, 2), date(2019, 1, 1), date(2021, 1, 1)], [b"y", b"x", b"z"]],
)
def test_a_client_column_of_any_type_names_the_clients_in_order(tmp_path, values) -> None:
    own = [values[row % 3] for row in range(NUM_ROWS)]
    data = load(section(write(tmp_path / "t.parquet", columns(client=own)), client="client"), seed=0)
    text = [value.decode() if isinstance(value, bytes) else str(value) for value in sorted(values)]
    assert list(data.client_names) == text
    by_feature = {row[0]: value for row, value in zip(np.c_[A, B].astype(np.float64), own, strict=True)}
    for row, client in zip(data.train_x, data.client_of, strict=True):
        assert sorted(values)[client] == by_feature[row[0]]


def test_a_folder_is_read_in_order_of_names_with_its_partition_keys(tmp_path) -> None:
    for client in ("zoe", "ann"):
        write(tmp_path / "t" / f"user={client}" / "part.parquet", columns())
    write(tmp_path / "t" / "_hidden" / "part.parquet", {"z": [1]})
    (tmp_path / "t" / "_SUCCESS").write_text("")
    data = load(section(tmp_path / "t", client="user"), seed=0)
    assert data.client_names == ("ann", "zoe") and len(data.train_x) == 80


def test_a_file_address_reads_as_a_path_does(tmp_path) -> None:
    path = write(tmp_path / "t.parquet", columns())
    data = load(section(f"file://{path}"), seed=0)
    assert np.array_equal(data.train_x, load(section(path), seed=0).train_x)


def test_a_test_table_of_its_own_replaces_the_held_out_rows(tmp_path) -> None:
    train = write(tmp_path / "train.parquet", columns(label=NAMES))
    test = write(tmp_path / "test.parquet", {"a": A[:4], "b": B[:4], "label": NAMES[:4], "more": [0] * 4})
    data = load(section(train, test_path=test), seed=0)
    assert len(data.train_x) == NUM_ROWS
    assert [data.class_names[code] for code in data.test_y] == NAMES[:4].tolist()


def test_a_second_load_maps_the_cache_without_reading_the_table(tmp_path, cache, monkeypatch) -> None:
    path = write(tmp_path / "t.parquet", columns())
    first = load(section(path), seed=0)
    monkeypatch.setattr("trainers.data.parquet._write", None)
    second = load(section(path), seed=5)
    assert np.array_equal(first.train_x, second.train_x)
    assert not second.train_x.flags.writeable
    assert len(list(cache.iterdir())) == 1


def test_a_changed_table_or_other_columns_are_read_anew(tmp_path, cache) -> None:
    path = write(tmp_path / "t.parquet", columns())
    load(section(path), seed=0)
    write(tmp_path / "t.parquet", columns(label=LABELS * 2))
    assert load(section(path), seed=0).num_classes == 5
    assert load(section(path, features=["a"]), seed=0).input_shape == (1,)
    assert len(list(cache.iterdir())) == 3


def test_mapped_arrays_travel_out_of_band(tmp_path) -> None:
    data = load(section(write(tmp_path / "t.parquet", columns())), seed=0)
    buffers = []
    pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 4


def test_a_table_is_read_without_holding_it_in_memory(tmp_path) -> None:
    values = RNG.normal(size=(400_000, 64)).astype(np.float32)
    table = {"x": pa.FixedSizeListArray.from_arrays(values.ravel(), 64), "label": np.zeros(400_000, np.int64)}
    source = find(write(tmp_path / "t.parquet", table, row_group_size=1000, compression="none"))
    del table
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in batches(source, ["x", "label"])]
    assert len(held) >= 100
    assert max(held) < values.nbytes / 2


BAD_LIST = [[1.0, 2.0]] * 20 + [[1.0]] + [[1.0, 2.0]] * 29
NULL_INSIDE = [[1.0, 2.0]] * 20 + [[1.0, None]] + [[1.0, 2.0]] * 29


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({}, {"label": "lable"}, "no column 'lable' .data.label.; it has a, b, label"),
        ({}, {"features": ["a", "c"]}, "no column 'c' .data.features."),
        ({}, {"client": "user"}, "no column 'user' .data.client."),
        ({}, {"features": []}, "names no column"),
        ({}, {"features": ["a", "label"]}, "both a feature and the label"),
        ({}, {"shape": [3, 1]}, "has 3 values, but a row of .* has 2"),
        ({"a": pa.array([*A[:17], None, *A[18:]])}, {}, "'a' has 1 nulls .* row 17 of .*t.parquet"),
        ({"a": np.where(np.arange(NUM_ROWS) == 17, np.nan, A)}, {}, "'a' has nan in row 17 of"),
        ({"b": np.where(np.arange(NUM_ROWS) == 3, np.inf, B)}, {}, "'b' has inf in row 3 of"),
        ({"a": NAMES}, {}, "'a' of .* is string, which cannot be a feature"),
        ({"a": BAD_LIST}, {"features": "a"}, "has 1 values in row 20 of .*, but 2 in the rows before"),
        ({"a": NULL_INSIDE}, {"features": "a"}, "null within row 20 of"),
        ({"a": [[]] * NUM_ROWS}, {"features": "a"}, "cannot be a feature|empty list"),
        ({"a": [[1.0]] * NUM_ROWS}, {}, "cannot be a feature"),
        ({"a": [[["x"]]] * NUM_ROWS}, {"features": "a"}, "cannot be a feature"),
        ({"label": LABELS - 1}, {}, "'label' has -1 in row 0 of"),
        ({"label": LABELS * 10**9}, {}, "has the label 2000000000, with 50 rows"),
        ({"label": LABELS / 2}, {}, "is double, which cannot be a label"),
        ({"label": [None, *LABELS[1:]]}, {}, "'label' has 1 nulls"),
        ({"client": [None, *NAMES[1:]]}, {"client": "client"}, "'client' has 1 nulls"),
        ({"client": [{"id": 1}] * NUM_ROWS}, {"client": "client"}, "one plain value a row"),
    ],
)
def test_columns_that_cannot_be_used_are_named_with_the_first_bad_row(tmp_path, cache, changes, settings, said) -> None:
    path = write(tmp_path / "t.parquet", columns(**changes), row_group_size=13)
    with pytest.raises(DataError, match=said):
        load(section(path, **settings), seed=0)
    assert [folder.name for folder in cache.glob("*")] == [] or "shape" in settings


def test_the_nearest_column_is_offered(tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        load(section(write(tmp_path / "t.parquet", columns()), label="lable"), seed=0)
    assert caught.value.hint == "did you mean label?"


def test_a_bad_row_is_counted_within_its_file(tmp_path) -> None:
    write(tmp_path / "t" / "1.parquet", columns())
    write(tmp_path / "t" / "2.parquet", columns(a=np.where(np.arange(NUM_ROWS) == 7, np.nan, A).astype(np.float32)))
    with pytest.raises(DataError, match=r"row 7 of .*2\.parquet"):
        load(section(tmp_path / "t"), seed=0)


@pytest.mark.parametrize("keep", [0, 3, 100, -4, -1])
def test_a_truncated_file_is_named(tmp_path, cache, keep) -> None:
    good = write(tmp_path / "t" / "1.parquet", columns())
    content = (tmp_path / "t" / "1.parquet").read_bytes()
    (tmp_path / "t" / "2.parquet").write_bytes(content[:keep])
    with pytest.raises(DataError, match=r"2\.parquet"):
        load(section(tmp_path / "t"), seed=0)
    assert load(section(good), seed=0).num_classes == 3


def test_damage_within_a_file_is_named(tmp_path, cache) -> None:
    path = tmp_path / "t.parquet"
    write(path, columns(), compression="gzip")
    content = bytearray(path.read_bytes())
    content[40:200] = bytes(160)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet"):
        load(section(path), seed=0)
    assert list(cache.glob("*")) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing.parquet", "does not exist"),
        ("empty", "holds no Parquet file, but nothing"),
        ("other", "holds no Parquet file, but notes.txt"),
        ("carrier://pigeon/x", "cannot read carrier://pigeon/x"),
    ],
)
def test_an_address_without_a_table_says_so(tmp_path, monkeypatch, path, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=said):
        load(section(path), seed=0)


@pytest.mark.parametrize(("num_rows", "said"), [(0, "has no rows"), (1, "has 1 row")])
def test_a_table_too_small_to_split_is_refused(tmp_path, num_rows, said) -> None:
    table = {name: values[:num_rows] for name, values in columns().items()}
    with pytest.raises(DataError, match=said):
        load(section(write(tmp_path / "t.parquet", table)), seed=0)


def test_labels_that_only_the_test_table_has_are_refused(tmp_path) -> None:
    train = write(tmp_path / "train.parquet", columns(label=NAMES))
    test = write(tmp_path / "test.parquet", columns(label=np.full(NUM_ROWS, "yak")))
    with pytest.raises(DataError, match=r"labels that .* lacks: yak"):
        load(section(train, test_path=test), seed=0)


def test_a_test_table_of_other_types_is_refused(tmp_path) -> None:
    train = write(tmp_path / "train.parquet", columns())
    test = write(tmp_path / "test.parquet", columns(a=B))
    with pytest.raises(DataError, match=r"'a' is double in .* but float in"):
        load(section(train, test_path=test), seed=0)


def test_a_cache_that_cannot_be_written_names_its_setting(tmp_path, cache) -> None:
    path = write(tmp_path / "t.parquet", columns())
    cache.parent.mkdir()
    cache.write_text("a file where a folder should be")
    with pytest.raises(DataError) as caught:
        load(section(path), seed=0)
    assert "ORCHESTRATOR_CACHE" in caught.value.hint


def test_a_damaged_cache_says_what_to_delete(tmp_path, cache) -> None:
    path = write(tmp_path / "t.parquet", columns())
    load(section(path), seed=0)
    (folder,) = cache.iterdir()
    (folder / "train_x.npy").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load(section(path), seed=0)
    assert str(folder) in caught.value.hint


def test_addresses_are_shown_without_keys_and_googles_retries_are_bounded() -> None:
    assert _without_secrets("s3://key:secret@bucket/x?region=eu&access_key=k") == "s3://bucket/x"
    assert _without_secrets("data/a@b.parquet") == "data/a@b.parquet"
    assert _bounded("gs://bucket/x") == "gs://bucket/x?retry_limit_seconds=60"
    assert (
        _bounded("gs://bucket/x?project_id=p&retry_limit_seconds=5")
        == "gs://bucket/x?project_id=p&retry_limit_seconds=5"
    )
    assert _bounded("s3://bucket/x") == "s3://bucket/x"
