"""Loading by section: names, limits, users' own functions, synthetic problems, and the transform to tensors."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

from trainers.data import DataError, Dataset, digits, load, partition_labels, to_labels, to_tensor, validate
from trainers.data.own import from_fields


def small(**changes):
    fields = {
        "name": "small",
        "task": "classification",
        "train_x": np.arange(12, dtype=np.float32).reshape(6, 2),
        "train_y": np.array([0, 1, 2, 0, 1, 2]),
        "test_x": np.zeros((2, 2), np.float32),
        "test_y": np.array([0, 2]),
        "num_classes": 3,
        "input_shape": (2,),
    }
    return Dataset(**{**fields, **changes})


def test_digits_come_without_a_file_and_split_every_class_alike() -> None:
    data = load({"name": "digits"}, seed=0)
    assert len(data.train_x) + len(data.test_x) == 1797
    share = np.bincount(data.test_y) / (np.bincount(data.test_y) + np.bincount(data.train_y))
    assert share == pytest.approx(0.2, abs=0.003)
    assert np.array_equal(load({"name": "digits"}, seed=1).test_x, data.test_x)
    assert data.train_x.mean() == pytest.approx(0, abs=0.01) and data.train_x.std() == pytest.approx(1, abs=0.01)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(DataError, match="did you mean fashion-mnist"):
        load({"name": "fashon-mnist"}, seed=0)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(DataError("message", "hint")))
    assert (error.message, error.hint, str(error)) == ("message", "hint", "message\n  hint")


def test_a_limit_keeps_that_many_examples_drawn_by_the_seed() -> None:
    section = {"name": "digits", "limit": 100}
    first, again, other = load(section, seed=1), load(section, seed=1), load(section, seed=2)
    assert len(first.train_x) == len(first.train_y) == 100 and len(first.test_x) == 359
    assert np.array_equal(first.train_x, again.train_x)
    assert not np.array_equal(first.train_x, other.train_x)
    with pytest.raises(DataError, match=r"data\.limit is 5000, but digits has 1438 training examples"):
        load({"name": "digits", "limit": 5000}, seed=0)


@pytest.mark.parametrize("kind", ["blobs", "linear", "images"])
def test_synthetic_data_is_a_function_of_the_seed_and_more_examples_change_nothing_else(kind) -> None:
    section = {"name": "synthetic", "kind": kind, "examples": 50, "test_examples": 30, "classes": 3}
    first, again, other = (load(section, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.train_x, again.train_x) and np.array_equal(first.train_y, again.train_y)
    assert not np.array_equal(first.train_x, other.train_x)
    more = load({**section, "examples": 80}, seed=1)
    assert len(more.train_x) == 80 and np.array_equal(more.test_x, first.test_x)


@pytest.mark.parametrize("kind", ["blobs", "linear"])
def test_synthetic_test_examples_follow_the_training_distribution(kind) -> None:
    section = {"name": "synthetic", "kind": kind, "examples": 3000, "test_examples": 1000, "noise": 0.3, "classes": 3}
    data = load(section, seed=0)
    x = np.c_[data.train_x, np.ones(len(data.train_x))]
    weights = np.linalg.lstsq(x, np.eye(3)[data.train_y], rcond=None)[0]
    guess = np.argmax(np.c_[data.test_x, np.ones(len(data.test_x))] @ weights, axis=1)
    assert (guess == data.test_y).mean() > 0.85


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "regression"}, "task is 'regression'"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"train_y": np.array([0, 1, 3, 0, 1, 2])}, "train_y has 3 in row 2, but num_classes is 3"),
        ({"test_y": np.array([0, -1])}, "test_y has -1 in row 1"),
        ({"train_y": np.zeros(5, np.int64)}, "train_x has 6 rows but train_y 5"),
        ({"train_y": np.zeros(6)}, "train_y is float64"),
        ({"train_y": np.zeros((6, 1), np.int64)}, "train_y has shape"),
        ({"input_shape": (3,)}, "does not fill input_shape"),
        ({"input_shape": ()}, "input_shape is"),
        ({"test_x": np.zeros((0, 2)), "test_y": np.zeros(0, np.int64)}, "test_x has no examples"),
        ({"train_x": np.full((6, 2), np.nan)}, "train_x has a value that is not finite in row 0"),
        ({"train_x": np.zeros((6, 2), complex)}, "train_x is complex128"),
        ({"scale": (0.5, 0.0)}, "scale is"),
        ({"client_of": np.zeros(6, np.int32)}, "client_of is given without client_names"),
        ({"client_of": np.full(6, 2), "client_names": ("a", "b")}, "client_of runs from 2 to 2"),
        ({"client_of": np.zeros(5, np.int32), "client_names": ("a",)}, "client_of is int32"),
        ({"task": "language-model", "train_x": np.ones((6, 2), np.int64)}, "train_y has shape"),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(changes, said) -> None:
    with pytest.raises(DataError, match=said):
        validate(small(**changes))


def test_a_value_that_is_not_finite_is_found_in_its_row() -> None:
    x = np.zeros((100_000, 100), np.float32)
    x[70_001, 3] = np.inf
    with pytest.raises(DataError, match="row 70001"):
        validate(small(train_x=x, train_y=np.zeros(100_000, np.int64), test_x=x[:2], input_shape=(100,)))


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    tokens = np.array([[0, 1], [2, 9]], np.uint8)
    with pytest.raises(DataError, match="train_x has 9 in row 1"):
        validate(small(task="language-model", train_x=tokens, train_y=tokens % 3, test_x=tokens % 3, test_y=tokens % 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_become_scaled_floats_with_a_channel(dtype) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    data = small(train_x=x, input_shape=(1, 4, 5), scale=(0.25, 0.5))
    made = to_tensor(x, data, dtype)
    assert made.shape == (3, 1, 4, 5) and made.dtype == dtype
    assert torch.allclose(made[:, 0], torch.from_numpy((x / 255 - 0.25) / 0.5).to(dtype), atol=1e-6)


def test_tokens_and_labels_become_int64() -> None:
    data = small(task="language-model", input_shape=(2,))
    tokens = to_tensor(np.array([[200, 1]], np.uint8), data, torch.float32)
    assert tokens.dtype == torch.int64 and tokens.tolist() == [[200, 1]]
    assert to_labels(np.array([200], np.uint8)).dtype == torch.int64


def test_read_only_arrays_are_copied_without_a_warning() -> None:
    x, y = np.ones((2, 2), np.float32), np.array([0, 1])
    x.flags.writeable = y.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made, labels = to_tensor(x, small(), torch.float32), to_labels(y)
    made += 1
    labels += 1
    assert x.tolist() == [[1, 1], [1, 1]] and y.tolist() == [0, 1]


def test_text_has_no_classes_to_partition_by() -> None:
    with pytest.raises(ValueError, match="kind: iid or column"):
        partition_labels(small(task="language-model"))


OWN = """
import numpy as np
def fields(rows=6, **changes):
    x = np.arange(rows * 16, dtype=np.uint8).reshape(rows, 4, 4)
    made = dict(train_x=x, train_y=np.arange(rows) % 3, test_x=x[:3], test_y=[0, 1, 2])
    return {**made, **changes}
def broken():
    return fields(train_y=np.full(6, 2.5))
def raises():
    raise FileNotFoundError("no such table")
def nothing():
    return None
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return name


def test_a_dict_from_a_file_beside_the_experiment_is_filled_in(own_module) -> None:
    data = load({"target": f"{own_module}:fields", "kwargs": {"client_of": list("bababc")}, "limit": 5}, seed=0)
    assert data.num_classes == 3 and data.input_shape == (1, 4, 4) and data.scale == (0.0, 1.0)
    assert data.client_names == ("a", "b", "c") and len(data.client_of) == 5
    assert data.train_y.dtype == data.test_y.dtype == np.int64


@pytest.mark.parametrize(
    ("function", "kwargs", "said"),
    [
        ("feilds", {}, "it has fields"),
        ("np", {}, "cannot be called"),
        ("fields", {"color": 1, "trainx": 1}, "unknown field 'color'"),
        ("fields", {"train_x": None}, "no train_x"),
        ("fields", {"train_x": "abc"}, "train_x is str"),
        ("broken", {}, "labels are float64|train_y is float64"),
        ("broken", {"rows": 1}, "raised TypeError"),
        ("raises", {}, "raised FileNotFoundError: no such table"),
        ("nothing", {}, "returned NoneType"),
    ],
)
def test_what_is_wrong_with_own_data_is_said(own_module, function, kwargs, said) -> None:
    with pytest.raises(DataError, match=said):
        load({"target": f"{own_module}:{function}", "kwargs": kwargs}, seed=0)


def test_a_missing_module_says_where_it_was_looked_for(own_module, tmp_path) -> None:
    with pytest.raises(DataError, match="there is no module 'no_such_package'") as caught:
        load({"target": "no_such_package.data:load"}, seed=0)
    assert str(tmp_path) in caught.value.hint


def test_a_module_that_fails_to_import_is_told_from_a_missing_one(own_module, tmp_path) -> None:
    (tmp_path / f"{own_module}_late.py").write_text("import no_such_dependency")
    with pytest.raises(DataError, match=r"importing .* failed: No module named 'no_such_dependency'"):
        load({"target": f"{own_module}_late:load"}, seed=0)


def test_tensors_and_lists_are_taken_for_arrays() -> None:
    data = from_fields(
        {"train_x": torch.ones(4, 2), "train_y": [0, 1, 0, 1], "test_x": [[0.0, 1.0]], "test_y": [True]}, name="own"
    )
    assert validate(data).num_classes == 2


def test_digits_are_those_that_scikit_learn_loads() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    table = np.loadtxt(digits.file(), delimiter=",")
    assert np.array_equal(table, np.column_stack([pixels, labels]))
