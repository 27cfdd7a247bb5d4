"""The command line and the Python names are promises: a change of them must be seen in a review.

Run `python tests/contract/test_cli_surface.py > tests/golden/cli_surface.txt` when a change is meant.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import orchestrator
from orchestrator import errors
from orchestrator.cli import cli, failing

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cli_surface.txt"


def surface() -> str:
    """Every command with its arguments and options, the exit codes, and the names of the package."""
    return "\n".join([*_commands(), "", *_codes(), "", *_names(), ""])


def _commands() -> Iterator[str]:
    yield "commands"
    for name, command in [("orchestrator", cli), *cli.commands.items()]:
        yield f"  {name}" + "".join(f" {p.metavar}" for p in command.params if isinstance(p, click.Argument))
        for option in command.params:
            if isinstance(option, click.Option):
                yield f"    {', '.join(option.opts)}{_details(option)}"


def _details(option: click.Option) -> str:
    parts = [] if option.is_flag else [option.metavar or "VALUE"]
    parts += ["required"] if option.required else []
    parts += [f"default {option.default}"] if isinstance(option.default, str) else []
    parts += [f"env {option.envvar}"] if option.envvar else []
    return f" {' '.join(parts)}" if parts else ""


def _codes() -> Iterator[str]:
    yield "exit codes"
    found = {failing.INTERRUPTED: "interrupted", failing.BUG: "a bug", 0: "done"}
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.OrchestratorError):
            found[error.exit_code] = error.__name__
    yield from (f"  {code} {name}" for code, name in sorted(found.items()))


def _names() -> Iterator[str]:
    yield "names"
    for name in sorted(orchestrator.__all__):
        found = getattr(orchestrator, name)
        shown = ""
        if inspect.isfunction(found):
            shown = f"({', '.join(str(p).split(':')[0] for p in inspect.signature(found).parameters.values())})"
        yield f"  orchestrator.{name}{shown}"


def test_the_surface_is_what_was_promised() -> None:
    """In a process of its own: importing Ray Tune, as `orchestrator.tune` does, changes environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == GOLDEN.read_text()


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    help_text = cli.commands[name].help or ""
    assert f"orchestrator {name}" in help_text
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, option.name


def test_names_of_the_package_are_found_and_others_are_not() -> None:
    assert set(orchestrator.__all__) <= set(dir(orchestrator))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = orchestrator.nothing


def test_run_is_the_function_whatever_is_imported_first() -> None:
    anew = "import sys; [sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'orchestrator']"
    orders = (
        "import orchestrator; first = orchestrator.run; import orchestrator.run; assert orchestrator.run is first",
        "import orchestrator.run, orchestrator; assert callable(orchestrator.run)",
        "from orchestrator.run import resume_run; from orchestrator import run; assert callable(run)",
    )
    script = "\n".join(f"{anew}\n{order}" for order in orders)
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "orchestrator", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("orchestrator ")


if __name__ == "__main__":
    print(surface(), end="")
