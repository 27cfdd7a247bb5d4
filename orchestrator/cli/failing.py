"""The one place where an exception becomes words on standard error and an exit code.

    0 done   1 other failures   2 the experiment   3 placement, cluster   4 a worker   5 resume   70 a bug   130 Ctrl-C

Errors that a user can act upon are printed without a traceback; anything else is a bug of ours and keeps its own.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from orchestrator.errors import ConfigError, OrchestratorError

INTERRUPTED = 130
BUG = 70


def exit_code(error: BaseException) -> int:
    """Print what went wrong and return the exit code for it."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.Abort):
        return _interrupted(error.__cause__ or error)
    if isinstance(error, click.ClickException):
        error.show(sys.stderr)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(error)
    if isinstance(error, ConfigError):
        _say(f"{error}\n{_count(len(error.problems))}")
        return error.exit_code
    if isinstance(error, OrchestratorError):
        _say(f"error: {error}")
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has left: say no more
        return 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _say(f"error: no room left on the disk: {error.filename or error}\n  make room, then type the same again")
        return 1
    _say("".join(traceback.format_exception(error)).rstrip())
    _say(
        f"this is a bug in orchestrator, not in what you typed: {type(error).__name__}: {error}\n"
        "  please report it with the lines above and the output of: orchestrator --version"
    )
    return BUG


def _interrupted(error: BaseException) -> int:
    text = str(error) if isinstance(error, KeyboardInterrupt) and type(error) is not KeyboardInterrupt else ""
    _say(text or "interrupted")
    return INTERRUPTED


def _count(number: int) -> str:
    return f"{number} problem{'' if number == 1 else 's'}; nothing was started"


def _say(text: str) -> None:
    click.echo(text, err=True)
