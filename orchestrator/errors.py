"""Errors that reach a user: each says what was given, what was expected and what to type next.

Every class carries its exit code, and survives pickling, since some of them travel between processes.
"""

from __future__ import annotations

from typing import NamedTuple

from trainers.errors import HintedError


class OrchestratorError(HintedError):
    """Something a user can act upon; anything else that escapes is a bug of ours."""

    exit_code = 1


class Problem(NamedTuple):
    """One thing wrong with an experiment.

    Args:
        where: `file.yaml:12` or `command line`.
        path: the dotted field, such as `strategy.client.epochs`; empty for the file as a whole.
        message: what was given and what was expected.
        hint: what to type instead; may be empty.
    """

    where: str
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.path}: {self.message}" if self.path else f"{self.where}: {self.message}"
        return f"{head}\n    {self.hint}" if self.hint else head


class ConfigError(OrchestratorError):
    """The experiment, as file, overrides or data it points to, cannot be run. Holds every problem found."""

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...] | list[Problem]) -> None:
        problems = tuple(problems)
        Exception.__init__(self, problems)
        self.problems = problems
        self.message = "\n".join(str(problem) for problem in problems)
        self.hint = ""


class PlacementError(OrchestratorError):
    """The cluster cannot hold what the experiment asks for, or cannot be reached."""

    exit_code = 3


class WorkerError(OrchestratorError):
    """A worker failed while doing its work.

    Args:
        message: what happened.
        worker: which worker, such as `worker 1`.
        node: the node's address; empty when it is this process.
        place: the round or stage and the client, such as `round 12, client 37`.
        remote_traceback: the traceback as text, from where it happened.
        hint: what to type next.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        worker: str = "",
        node: str = "",
        place: str = "",
        remote_traceback: str = "",
        hint: str = "",
    ) -> None:
        Exception.__init__(self, message, worker, node, place, remote_traceback, hint)
        self.message = message
        self.worker = worker
        self.node = node
        self.place = place
        self.remote_traceback = remote_traceback
        self.hint = hint

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.place, self.worker, self.node and f"node {self.node}") if part)
        parts = [f"{self.message} ({where})" if where else self.message]
        if self.remote_traceback:
            parts.append(self.remote_traceback.rstrip())
        if self.hint:
            parts.append(f"  {self.hint}")
        return "\n".join(parts)


class ResumeError(OrchestratorError):
    """A run directory or checkpoint cannot be continued."""

    exit_code = 5
