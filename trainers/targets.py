"""Users' own code: from the text `package.module:function` to the function.

Modules are looked for in the current folder too, as `python -m` does, so that a file beside the experiment works
without being installed. Calling the function and checking what it returns is left to those who asked for it.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from trainers.errors import HintedError


class TargetError(HintedError):
    """A target cannot be found or imported."""


def resolve(target: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` names.

    Raises:
        TargetError: when the module or function does not exist, or importing the module fails.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise TargetError(f"target {target!r} is not of the form package.module:function", "write my_data:load")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise TargetError(
                f"target {target!r}: there is no module {error.name!r}",
                f"modules are looked for in {folder} and among the installed packages",
            ) from error
        raise TargetError(
            f"target {target!r}: importing {module_name} failed: {error}", "install what it needs"
        ) from error
    except Exception as error:
        raise TargetError(
            f"target {target!r}: importing {module_name} failed: {type(error).__name__}: {error}",
            f'see the whole traceback with: python -c "import {module_name}"',
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [other for other in vars(module) if callable(getattr(module, other)) and not other.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1) or names[:5]
        problem = "has no" if function is None else "has something that cannot be called for"
        raise TargetError(
            f"target {target!r}: {module_name} {problem} {name}", f"it has {', '.join(near) or 'no functions'}"
        )
    return function
