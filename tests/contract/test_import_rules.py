"""The import rules of the house, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"strategies", "trainers", "cluster", "orchestrator"}
FORBIDDEN = {
    "strategies": {
        "ray", "mlflow", "deepspeed", "time", "datetime", "socket", "subprocess", "os", "io", "pathlib", "shutil",
        "tempfile", "random", "threading", "asyncio", "trainers", "cluster", "orchestrator",
    },
    "trainers": {"ray", "mlflow", "cluster", "orchestrator"},
    "cluster": {"torch", "mlflow", "deepspeed", "strategies", "trainers", "orchestrator"},
    "orchestrator": set(),
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_package_imports_nothing_it_must_not(package: str) -> None:
    broken = {
        str(path.relative_to(ROOT)): sorted(imports(path) & FORBIDDEN[package])
        for path in sources(package)
        if imports(path) & FORBIDDEN[package]
    }
    assert sources(package)
    assert broken == {}


def test_ray_and_mlflow_each_have_their_one_place_in_orchestrator() -> None:
    ray = {path.name for path in sources("orchestrator") if "ray" in imports(path)}
    mlflow = {path.name for path in sources("orchestrator") if "mlflow" in imports(path)}
    assert ray <= {"tuning.py"}
    assert mlflow and all(name.startswith("tracking") for name in mlflow)


def test_strategies_draw_no_global_random_numbers() -> None:
    banned = ("np.random.seed", "np.random.rand", "torch.manual_seed", "torch.seed", "random.random")
    broken = [(path.name, word) for path in sources("strategies") for word in banned if word in path.read_text()]
    assert broken == []


def unpickles(text: str) -> bool:
    """Whether a module loads what it was given with more than tensors in it."""
    return any("weights_only=True" not in call.split(")")[0] for call in text.split("torch.load(")[1:])


def test_nothing_in_the_packages_unpickles() -> None:
    broken = [
        str(path.relative_to(ROOT))
        for package in OURS
        for path in sources(package)
        if imports(path) & {"pickle", "cloudpickle", "dill"} or unpickles(path.read_text())
    ]
    assert broken == []


def test_files_stay_small() -> None:
    lengths = {path: len(path.read_text().splitlines()) for package in OURS for path in sources(package)}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 400} == {}


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {path.stem for package in OURS for path in sources(package)}
    assert names & {"utils", "util", "helpers", "common", "misc"} == set()


def test_every_package_is_found_for_the_wheel() -> None:
    import tomllib

    from setuptools import find_packages

    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for package in OURS for path in sources(package)
        if path.name == "__init__.py"
    }  # fmt: skip
    assert found == set(find_packages(str(ROOT), include=given["include"]))
    assert {path.parent for package in OURS for path in sources(package)} == {
        ROOT / name.replace(".", "/") for name in found
    }


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'matplotlib', 'pyarrow'}"
    script = f"import sys, orchestrator.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
