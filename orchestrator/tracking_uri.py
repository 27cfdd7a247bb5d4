"""Where a run's MLflow record goes: which URI wins, what it means, and what is wrong with it before a run starts.

An explicit `tracking.uri` wins, then `MLFLOW_TRACKING_URI`, then SQLite in the run root. Nothing here opens a
connection or imports MLflow: a server that is down is no mistake of the user's, a URI that can never work is one.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.config.schema import Tracking
from orchestrator.errors import Problem

VARIABLE = "MLFLOW_TRACKING_URI"
_DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}
_SCHEMES = ("sqlite", "http", "https", *_DRIVERS, "databricks")
_SQLITE_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True)
class Target:
    """Where metrics go.

    Args:
        uri: what MLflow is given; may hold a password, so it is never shown or stored.
        shown: the same without the password.
        given: what named it: `default`, `MLFLOW_TRACKING_URI`, or the setting as it was written.
        database: the SQLite file, when it is one.
        artifacts: where a new experiment keeps its artifacts; None leaves that to the server.
    """

    uri: str
    shown: str
    given: str
    database: Path | None
    artifacts: Path | None

    @property
    def identity(self) -> str:
        """What tells one target from another; the default one stays itself when the run root is moved."""
        return "default" if self.given == "default" else self.shown

    def record(self) -> dict[str, str]:
        """Return the part of the manifest's `mlflow` section that a resume needs to find the same target."""
        return {"uri": self.shown, "given": self.given}


def resolve(settings: Tracking, run_path: Path, recorded: Mapping[str, Any] | None = None) -> Target:
    """Return where a run's metrics go.

    Args:
        run_path: the run directory; a trial's is inside its sweep's.
        recorded: the manifest's `mlflow` section, so that a resume without the environment variable, or from
            another folder, finds what the run used before.
    """
    root = run_root(run_path)
    recorded = recorded or {}
    setting, variable = settings.uri, os.environ.get(VARIABLE) or None
    if setting is not None:
        given = without_password(setting)
        known = _relative_sqlite(setting) and recorded.get("given") == given and recorded.get("uri")
        return _target(known or setting, given, root)
    if variable is not None:
        return _target(variable, VARIABLE, root)
    if recorded.get("given") == VARIABLE and recorded.get("uri"):
        return _target(recorded["uri"], VARIABLE, root)
    return _target(f"sqlite:///{root / 'mlflow.db'}", "default", root)


def run_root(run_path: Path) -> Path:
    """Return the folder that holds the run directory, or the sweep that the run is a part of."""
    top = run_path = run_path.absolute()
    for folder in list(run_path.parents)[:4]:
        if (folder / "manifest.json").exists():
            top = folder
    return top.parent


def check(settings: Tracking) -> list[Problem]:
    """Return what is wrong with where metrics should go: a URI that MLflow can never use, not one that is down."""
    if not settings.enabled:
        return []
    variable = os.environ.get(VARIABLE)
    if settings.uri is not None:
        where, path, uri, say = "experiment", "tracking.uri", settings.uri, "tracking.uri="
    elif variable:
        where, path, uri, say = "environment", VARIABLE, variable, f"export {VARIABLE}="
    else:
        return []
    wrong = _wrong(uri, say)
    return [Problem(where, path, *wrong)] if wrong else []


def without_password(uri: str) -> str:
    """Return a URI that may be shown: user names and passwords are left out."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def _target(uri: str, given: str, root: Path) -> Target:
    database = artifacts = None
    if uri.startswith("sqlite:"):
        database = _sqlite_path(uri)
        query = uri.partition("?")[2]
        uri = f"sqlite:///{database}" + (f"?{query}" if query else "")
        artifacts = database.parent / "mlartifacts"
    elif _scheme(uri)[0] in _DRIVERS:
        artifacts = root / "mlartifacts"
    return Target(uri, without_password(uri), given, database, artifacts)


def _scheme(uri: str) -> tuple[str, str]:
    """Return `("postgresql", "psycopg")` of `postgresql+psycopg://...`; empty strings when there is none."""
    name = uri.partition("://")[0] if "://" in uri else uri.partition(":/")[0] if ":/" in uri else ""
    base, _, driver = name.lower().partition("+")
    return base, driver


def _relative_sqlite(uri: str) -> bool:
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///").partition("?")[0]).is_absolute()


def _sqlite_path(uri: str) -> Path:
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0]).expanduser()
    if path.is_absolute():
        return path
    from cluster.connect import inside_job

    return (Path.home() if inside_job() else Path.cwd()) / path  # a job's own folder is deleted after it


def _wrong(uri: str, say: str) -> tuple[str, str] | None:
    """Return a message and a hint when MLflow cannot ever use a URI."""
    scheme, driver = _scheme(uri)
    shown = without_password(uri)
    if uri == "databricks" or scheme in _plugins():
        return None
    if scheme in ("", "file"):
        host = re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri)
        if host:
            return f"{shown!r} has no scheme", f"type: {say}http://{uri}"
        folder = Path(re.sub(r"^file:(//)?", "", uri) or "mlruns").expanduser().absolute()
        return (
            f"{shown!r} is a folder, and MLflow no longer keeps runs in plain folders",
            f"type: {say}sqlite:///{folder}/mlflow.db",
        )
    if scheme == "sqlite":
        return _wrong_sqlite(uri, say)
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(uri)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        return None if usable else (f"{shown!r} names no host and port", f"type such as: {say}http://localhost:5000")
    if scheme in _DRIVERS:
        module = driver or _DRIVERS[scheme]
        if importlib.util.find_spec(module) is None:
            return f"{shown!r} needs the Python package {module}, which is not installed", f"pip install {module}"
        return None
    if scheme in _SCHEMES:
        return None
    near = difflib.get_close_matches(scheme, _SCHEMES, 1)
    hint = f"did you mean {near[0]}://?" if near else f"such as: {say}http://localhost:5000"
    return f"{shown!r} has a scheme MLflow does not know; expected one of {', '.join(_SCHEMES)}", hint


def _wrong_sqlite(uri: str, say: str) -> tuple[str, str] | None:
    example = f"type such as: {say}sqlite:////home/me/mlflow.db"
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///"):
        return f"{uri!r} has too few slashes: three, then the path of the file", example
    if name in ("", ":memory:"):
        return f"{uri!r} is a database in memory, gone when the run ends", example
    path = _sqlite_path(uri)
    if path.is_dir():
        return f"{path} is a folder, not a database file", f"type: {say}sqlite:///{path}/mlflow.db"
    if path.is_file():
        if not os.access(path, os.R_OK | os.W_OK):
            return f"{path} cannot be written", f"chmod u+rw {path}, or name another file"
        with path.open("rb") as file:
            begin = file.read(len(_SQLITE_MAGIC))
        return (f"{path} is no SQLite database", example) if begin and begin != _SQLITE_MAGIC else None
    folder = next(folder for folder in path.parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder of {path} cannot be written", example
    return None


def _plugins() -> set[str]:
    """Return the schemes that installed MLflow plug-ins add."""
    return {entry.name for entry in importlib.metadata.entry_points(group="mlflow.tracking_store")}
