"""Weights that a run begins with, and weights that leave one: plain `state_dict` files and runs of ours.

    .pt, .pth        `torch.save` of a state_dict, read with weights_only=True: nothing in it is executed
    .safetensors     where that library is installed
    a folder         a run directory, of which the newest whole checkpoint counts, or one of its checkpoints

Problems are told by name: what is missing, what is too much, what has another shape. Left out: optimizer states, which
only a resume takes over.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator import results
from orchestrator.checkpoints import CheckpointStore
from orchestrator.config import Origins, load_experiment
from orchestrator.errors import ConfigError, OrchestratorError, Problem, ResumeError
from orchestrator.pretraining import Begun
from orchestrator.rundir import RunDirectory
from orchestrator.shard_sets import assembled
from trainers import modules

if TYPE_CHECKING:
    from orchestrator.preparing import Prepared

FIELD = "model.weights"
SUFFIXES = (".pt", ".pth", ".safetensors")
_SHOWN = 5


def begin_with(prepared: Prepared, where: Origins | None = None) -> Prepared:
    """Return what a run starts with, with the weights that the experiment names put into its model.

    Raises:
        ConfigError: when they cannot be read, or are not those of the model.
    """
    path = prepared.experiment.model.weights
    if path is None:
        return prepared
    origins = where or Origins()
    try:
        found = read(path)
    except (ResumeError, OrchestratorError) as error:
        raise ConfigError([Problem(origins(FIELD), FIELD, error.message, getattr(error, "hint", ""))]) from error
    model = prepared.model
    problems = [Problem(origins(FIELD), FIELD, *said) for said in differences(model, found, path)]
    if problems:
        raise ConfigError(problems)
    tree = _tree(model, found)
    if not any(tensor.is_meta for tensor in model.parameters()):
        with torch.no_grad():
            for name, tensor in modules.everything(model):
                tensor.copy_(tree[name] if name in tree else found.get(name, tensor))
    facts = {"path": str(path), "sha256": digest(tree), "tensors": len(tree)}
    return prepared._replace(begun=Begun(tree, facts))


def read(path: str) -> dict[str, Tensor]:
    """Return the tensors of a file or a folder, by name.

    Raises:
        OrchestratorError: when it is neither, or damaged; ResumeError: when a folder's checkpoints are.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _of_folder(place)
    if not place.exists():
        raise OrchestratorError(f"got {path!r}, and there is no such file or folder in {Path.cwd()}", "give its path")
    if place.suffix == ".safetensors":
        load = _safetensors("load_file")
    elif place.suffix in SUFFIXES:
        load = _load_pt
    else:
        raise OrchestratorError(
            f"got {path!r}, expected a file called {', '.join(SUFFIXES)}, or a run directory",
            "torch.save(model.state_dict(), 'weights.pt')",
        )
    try:
        found = load(place)
    except Exception as error:  # both libraries raise whatever they like
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OrchestratorError(f"{path} cannot be read: {reason}", "torch.save(model.state_dict(), PATH)") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    odd = [name for name, value in found.items() if not isinstance(value, Tensor)] if isinstance(found, Mapping) else ()
    if not isinstance(found, Mapping) or odd:
        held = f"{odd[0]!r}, which is no tensor" if odd else f"a {type(found).__name__}"
        raise OrchestratorError(f"{path} holds {held}, expected a state_dict", "torch.save(model.state_dict(), PATH)")
    return {str(name): tensor for name, tensor in found.items()}


def differences(model: nn.Module, found: Mapping[str, Tensor], path: str) -> Iterator[tuple[str, str]]:
    """Yield what keeps tensors from being the model's, as message and hint."""
    own = model.state_dict(keep_vars=True)
    there = {id(own[name]) for name in found if name in own}  # of tied tensors, one name is enough
    missing = [name for name, tensor in own.items() if tensor.is_floating_point() and id(tensor) not in there]
    unexpected = [name for name in found if name not in own and name not in modules.tensors(model)]
    shapes = [name for name in own if name in found and found[name].shape != own[name].shape]
    if missing:
        yield f"{path} lacks {_some(missing)} of the model's {len(own)} tensors", _near(missing, unexpected)
    if unexpected:
        yield f"{path} has {_some(unexpected)}, which the model has not", "" if missing else "another model's weights?"
    for name in shapes[:_SHOWN]:
        wanted, given = (list(tensors[name].shape) for tensors in (own, found))
        yield f"{name} in {path} has shape {given}, the model's is {wanted}", "give model: the sizes of that file"


def state_dict(model: nn.Module, trees: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return what `model.load_state_dict` takes: names of tied tensors twice, buffers that are not saved left out.

    Args:
        model: may be on the meta device. trees: of a state, `model` and `counters`.
    """
    held = {**trees.get("model", {}), **trees.get("counters", {})}
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    called = {id(tensor): name for name, tensor in own.items() if name in held}
    found = {}
    for name, tensor in own.items():
        source = name if name in held else called.get(id(tensor))
        if source is not None:
            found[name] = held[source]
        elif not tensor.is_floating_point():
            found[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)  # a counter that the strategy does not keep
    return found


def export(run_dir: str | Path, to: str | Path, step: int | None = None) -> int:
    """Write the model of a run's newest whole checkpoint, or of one step, as a plain state_dict.

    Returns:
        the step.

    Raises:
        ConfigError: when the file's name has another ending, or cannot be written. ResumeError: without a checkpoint.
    """
    target = Path(to).expanduser()
    save = _saver(target)
    directory = RunDirectory.open(run_dir)
    loaded = load_experiment(directory.path / "config.resolved.yaml")
    store = results.checkpoint_store(loaded.experiment, directory)
    if step is not None and step not in store.steps():
        there = ", ".join(map(str, store.steps())) or "none"
        raise ResumeError(f"{directory.path} holds no checkpoint of step {step}", f"there are: {there}")
    state = store.load(step) if step is not None else results.newest(loaded, directory)
    state = assembled(state)
    model = _shapes(loaded)
    trees = {"model": state.model or {}, "counters": state.server.get("counters", {})}
    tensors = state_dict(model, trees) if model is not None else {**trees["model"], **trees["counters"]}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise ConfigError([Problem(str(target), "", f"cannot be written: {error.strerror or error}")]) from error
    finally:
        temporary.unlink(missing_ok=True)
    return state.step


def digest(tree: Mapping[str, Tensor]) -> str:
    """Return a checksum of a tree."""
    from trainers import wire

    return hashlib.sha256(wire.encode(tree)).hexdigest()


# ---------------------------------------------------------------------------------------------------- the parts


def _of_folder(place: Path) -> dict[str, Tensor]:
    if (place / "checkpoint.json").exists():
        name = place.resolve().name
        state = CheckpointStore(place.resolve().parent, keep=1).load(int(name.removeprefix("step-")))
    elif (place / "manifest.json").exists():
        directory = RunDirectory.open(place)
        state = results.newest(load_experiment(directory.path / "config.resolved.yaml"), directory)
    else:
        raise OrchestratorError(f"{place} is neither a run directory nor a checkpoint", "runs/NAME, or a .pt file")
    state = assembled(state)
    return {**(state.model or {}), **state.server.get("counters", {})}


def _shapes(loaded: Any) -> nn.Module | None:
    """Return the run's model without memory; None where its data is not to be had, or it cannot be built so."""
    from orchestrator.preparing import prepare_shapes

    try:
        return prepare_shapes(loaded)
    except ConfigError:
        return None


def _tree(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that travel, under the names of parameters and in the model's types."""
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        aliases.setdefault(id(tensor), []).append(name)
    tree = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        known = next((other for other in (name, *aliases.get(id(tensor), ())) if other in found), None)
        if known is not None and tensor.is_floating_point():
            tree[name] = found[known].detach().to(device="cpu", dtype=tensor.dtype).contiguous()
    return tree


def _load_pt(place: Path) -> Any:
    mapped = zipfile.is_zipfile(place)  # older files are not
    return torch.load(place, map_location="cpu", weights_only=True, mmap=mapped)


def _safetensors(function: str) -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise OrchestratorError("reading and writing .safetensors needs that library", "pip install safetensors")
    import safetensors.torch

    return getattr(safetensors.torch, function)


def _saver(target: Path) -> Any:
    if target.suffix not in SUFFIXES:
        message = f"got {target.name!r}, expected a name that ends in {', '.join(SUFFIXES)}"
        raise ConfigError([Problem(str(target), "", message, "orchestrator export RUN_DIR weights.pt")])
    if not target.absolute().parent.is_dir():
        raise ConfigError([Problem(str(target), "", f"there is no folder {target.absolute().parent}", "make it first")])
    return _safetensors("save_file") if target.suffix == ".safetensors" else torch.save


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _near(missing: list[str], unexpected: list[str]) -> str:
    """Say which prefix would make the names fit, where one would."""
    for given in unexpected[:1]:
        for wanted in missing:
            if given.endswith(f".{wanted}"):
                return f"its names begin with {given.removesuffix(wanted)!r}: save the state_dict of the inner module"
            if wanted.endswith(f".{given}"):
                return f"the model's names begin with {wanted.removesuffix(given)!r}: save the whole model's state_dict"
    return "the file must hold all of the model"
