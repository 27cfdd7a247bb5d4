"""`orchestrator submit`: an experiment as a job of a cluster, its output followed here.

The file is checked here first, without its data, which may be where the cluster is. Left out: building images and
starting clusters; see `examples/cluster`.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.commands import EXPERIMENT, OVERRIDES, ROOT, SPACED
from orchestrator.cli.failing import INTERRUPTED
from orchestrator.errors import ConfigError, PlacementError, Problem

if TYPE_CHECKING:
    from cluster.jobs import JobOutcome

_PACKAGING = "ray._private.runtime_env.packaging"


@click.command("submit", short_help="Run an experiment as a job of a cluster.", context_settings=SPACED)
@EXPERIMENT
@OVERRIDES
@click.option(
    "--address",
    required=True,
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    metavar="URL",
    help="The cluster's job server, such as http://head:8265.",
)
@click.option("--working-dir", default=".", show_default=True, metavar="FOLDER", help="Sent along; holds the file.")
@click.option("--runtime-env", metavar="FILE", help="Ray runtime environment in YAML: pip, env_vars, ...")
@click.option("--tune", "search", is_flag=True, help="Run the search of the file instead of one run.")
@click.option("--no-wait", is_flag=True, help="Return when the job is submitted.")
@ROOT
def submit(
    experiment: str,
    overrides: tuple[str, ...],
    address: str,
    working_dir: str,
    runtime_env: str | None,
    search: bool,
    no_wait: bool,
    root: str | None,
) -> int:
    """Run an experiment as a job of a Ray cluster and follow its output.

    Exits as the job does. Ctrl-C asks whether to stop the job. On the cluster, a relative folder for run
    directories is taken from the home folder.

    \b
    orchestrator submit exp.yaml --address http://head:8265
    orchestrator submit exp.yaml seed=9 --address http://head:8265 --no-wait
    """
    from orchestrator.config import load_experiment
    from orchestrator.executors import not_sent

    settings = load_experiment(experiment, overrides).experiment
    if search and settings.search is None:
        hint = "add a section: search: {space: {strategy.client.optimizer.lr: {choice: [0.01, 0.1]}}}"
        raise ConfigError([Problem(experiment, "search", "is missing, and --tune needs it", hint)])
    environment = _environment(runtime_env)
    remote = "://" in working_dir
    inside = experiment if remote else _inside(experiment, working_dir)
    if not remote:
        kept = environment.get("excludes") or []
        kept = kept if isinstance(kept, list) else [str(kept)]
        environment["excludes"] = [*dict.fromkeys([*kept, *not_sent(settings, working_dir)])]
    words = ["orchestrator", "tune" if search else "run", inside, *overrides]
    words += ["--root", root] if root is not None else []
    from cluster import jobs

    _quieten()
    with _job_errors(address, runtime_env):
        job = jobs.submit(
            address,
            shlex.join(words),
            working_dir=working_dir if remote else str(Path(working_dir).resolve()),
            runtime_env=environment,
            metadata={"name": settings.name, "submitted_by": "orchestrator"},
        )
        click.echo(f"submitted {job} to {address}", err=True)
        if no_wait:
            click.echo(f"  follow it: ray job logs --follow --address {address} {job}", err=True)
            click.echo(job)
            return 0
        return _follow(address, job)


def _follow(address: str, job: str) -> int:
    """Follow a job to its end and return its exit code; Ctrl-C asks what to do with it."""
    from cluster import jobs

    stopping, num_seen = False, 0

    def write(text: str) -> None:
        nonlocal num_seen
        click.echo(text, nl=False)
        num_seen += len(text)

    while True:
        try:
            return _ended(job, jobs.follow(address, job, write, num_seen=num_seen), stopping)
        except KeyboardInterrupt:
            wish = "leave" if stopping else _asked(job)
        if wish == "leave":
            click.echo(f"\nleft {job} as it is", err=True)
            click.echo(f"  stop it: ray job stop --address {address} {job}", err=True)
            click.echo(f"  follow it: ray job logs --follow --address {address} {job}", err=True)
            return INTERRUPTED
        if wish == "stop":
            stopping = True
            jobs.stop(address, job)
            click.echo(f"stopping {job}; a run saves its state first. Ctrl-C again leaves it to itself", err=True)


def _asked(job: str) -> str:
    """Ask a person; where there is none, the job is left running."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "leave"
    try:
        answer = click.prompt(
            f"\n{job} is running: stop it, leave it running, or continue following?",
            type=click.Choice(["stop", "leave", "continue"]),
            default="leave",
            err=True,
        )
    except (click.Abort, KeyboardInterrupt):
        return "leave"
    return str(answer)


def _ended(job: str, outcome: JobOutcome, stopping: bool) -> int:
    reason = outcome.message.partition(", last available logs")[0].strip()  # the log itself was followed
    click.echo(f"{job} {outcome.status}" + (f": {reason}" if reason else ""), err=True)
    if outcome.status == "SUCCEEDED":
        return 0
    if outcome.exit_code == 127:
        click.echo("  orchestrator is not installed on the cluster: name it under pip in --runtime-env FILE", err=True)
    if stopping:
        return INTERRUPTED
    code = outcome.exit_code or 1
    return code if 0 < code < 256 else 128 - code if -128 < code < 0 else 1


def _inside(experiment: str, working_dir: str) -> str:
    """Return the file's path as the job sees it, inside the folder that is sent along."""
    folder, file = Path(working_dir).resolve(), Path(experiment).resolve()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(
            [Problem("command line", "--working-dir", f"{working_dir} {what}", "name an existing folder")]
        )
    if not file.is_relative_to(folder):
        message = f"lies outside the folder that is sent to the cluster, {folder}"
        raise ConfigError([Problem(experiment, "", message, f"--working-dir {file.parent}")])
    return str(file.relative_to(folder))


def _environment(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    from orchestrator.config.document import decode, parse

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(path, "--runtime-env", message, "name a YAML file, or leave it out")]) from error
    text, problems = decode(data, path)
    if not problems:
        document, problems = parse(text, path)
        if not problems and isinstance(document.value, dict):
            return document.value
    message = "holds no mapping, expected a Ray runtime environment"
    raise ConfigError(problems or [Problem(path, "", message, "such as: {pip: [einops], env_vars: {A: '1'}}")])


def _quieten() -> None:
    """Keep what Ray says of its own uploads and sockets from between the job's lines."""
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", _PACKAGING):
        logging.getLogger(name).addFilter(_important)


def _important(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


@contextmanager
def _job_errors(address: str, runtime_env: str | None) -> Iterator[None]:
    """Turn what the cluster raises into errors that say what to type."""
    from cluster.errors import Unreachable
    from cluster.jobs import JobFailed

    try:
        yield
    except Unreachable as error:
        raise PlacementError(
            f"no job server answers at {error.address}: {error.reason}",
            "its address is that of Ray's dashboard: --address http://HEAD:8265",
        ) from error
    except JobFailed as error:
        raise PlacementError(f"the job server at {address} refused: {error.reason}") from error
    except TypeError as error:  # Ray's word for a runtime environment of the wrong shape
        if runtime_env is None or "runtime_env" not in str(error):
            raise
        hint = "see Ray's documentation of runtime environments: pip, env_vars, py_modules, ..."
        raise ConfigError([Problem(runtime_env, "", str(error), hint)]) from error
