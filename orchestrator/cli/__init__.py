"""The command `orchestrator`: nine commands, each a thin layer over a function of this package.

Whatever is slow to import is imported inside the command that needs it, so that `--help` answers at once. There is
no option for fields of the experiment file: every field is set as `dotted.field=value`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from orchestrator.cli import failing
from orchestrator.cli.commands import export, list_, plan, report, resume, run, tune, validate
from orchestrator.cli.submitting import submit


class _Group(click.Group):
    """Commands in the order in which people meet them, with a hint for a command that does not exist."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            if name.endswith((".yaml", ".yml")):
                raise click.UsageError(f"{name!r} is not a command. Did you mean: orchestrator run {name}?")
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(self.commands)}."
            raise click.UsageError(f"No such command {name!r}. {hint}")
        return super().resolve_command(context, args)


def _version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from orchestrator.environment import versions

        found = versions()
        click.echo(f"orchestrator {found.get('orchestrator', 'not installed')}")
        click.echo("  ".join(f"{name} {found[name]}" for name in ("python", "ray", "torch", "mlflow") if name in found))
        context.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show versions.")
def cli() -> None:
    """Train across workers on Ray: one experiment file says model, data, strategy and resources.

    \b
    orchestrator validate exp.yaml                     is the file right?
    orchestrator plan exp.yaml                         what would run where?
    orchestrator run exp.yaml seed=9                   run it
    orchestrator report runs/NAME                      see what came of it

    Fields of the file are overridden as dotted.field=value after the file.
    """


for _command in (run, tune, submit, resume, plan, validate, report, export, list_):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = cli.main(
            args=None if arguments is None else list(arguments), prog_name="orchestrator", standalone_mode=False
        )
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except BaseException as error:
        code = failing.exit_code(error)
    sys.exit(code)
