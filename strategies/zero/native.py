"""What a user's own DeepSpeed configuration says that an experiment file says otherwise.

Fields that both know must agree, or be `"auto"`, as Hugging Face's integration writes what others decide; all other
fields are DeepSpeed's and are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

AUTO = "auto"


class Conflict(NamedTuple):
    """A field of the native configuration that contradicts a field of the experiment.

    Args:
        path: in the native configuration. given: what it says. field: of the experiment. ours: what that says.
        hint: what to write instead.
    """

    path: tuple[str, ...]
    given: Any
    field: str
    ours: str
    hint: str


def conflicts(strategy: Mapping[str, Any], native: Mapping[str, Any]) -> Iterator[Conflict]:
    """Yield every contradiction.

    Args:
        strategy: the experiment's section of ZeRO, as plain values. native: DeepSpeed's configuration.
    """
    yield from _batches(strategy, native)
    yield from _update(strategy, native)
    yield from _stage(strategy, native)
    yield from _numbers(strategy, native)


def _batches(strategy: Mapping[str, Any], native: Mapping[str, Any]) -> Iterator[Conflict]:
    batch, accumulate, ranks = strategy["batch_size"], strategy["accumulate"], strategy["ranks"]
    micro = batch / ranks
    expected = (
        ("train_batch_size", batch * accumulate, "strategy.batch_size", f"{batch}, over {accumulate} of them a step"),
        ("gradient_accumulation_steps", accumulate, "strategy.accumulate", str(accumulate)),
        ("train_micro_batch_size_per_gpu", micro, "strategy.batch_size", f"{batch}, over {ranks} ranks"),
    )
    for name, wanted, field, said in expected:
        given = native.get(name, AUTO)
        if given not in (AUTO, wanted):
            yield Conflict((name,), given, field, said, f"{wanted:g}, or leave it out")


def _update(strategy: Mapping[str, Any], native: Mapping[str, Any]) -> Iterator[Conflict]:
    clip, given = strategy["clip_norm"], native.get("gradient_clipping", AUTO)
    if given != AUTO and (given or None) != clip:
        yield Conflict(("gradient_clipping",), given, "strategy.clip_norm", _said(clip), "say it there alone")
    if native.get("scheduler"):
        name = strategy["learning_rate"]["name"]
        given = _inner(native, "scheduler").get("type", native["scheduler"])
        yield Conflict(("scheduler",), given, "strategy.learning_rate", name, "leave the scheduler out")
    theirs, ours = _inner(native, "optimizer"), strategy["optimizer"]
    kind = theirs.get("type", AUTO)
    if kind != AUTO and str(kind).lower() != str(ours["name"]).lower():
        hint = "name it in strategy.optimizer, and leave it out here"
        yield Conflict(("optimizer", "type"), kind, "strategy.optimizer.name", _said(ours["name"]), hint)
        return
    known = {**ours.get("kwargs", {}), **{key: ours.get(key) for key in ("lr", "momentum", "weight_decay")}}
    for key, value in _inner(theirs, "params").items():
        wanted = known.get(key)
        if value != AUTO and _plain(value) != _plain(wanted):
            place = key if key in ("lr", "momentum", "weight_decay") else f"kwargs.{key}"
            field = f"strategy.optimizer.{place}"
            yield Conflict(("optimizer", "params", key), value, field, _said(wanted), "say it there alone")


def _stage(strategy: Mapping[str, Any], native: Mapping[str, Any]) -> Iterator[Conflict]:
    zero, offload = _inner(native, "zero_optimization"), strategy["offload"]
    given = zero.get("stage", AUTO)
    if given not in (AUTO, strategy["stage"]):
        hint = f"strategy.stage={given}, or leave it out here"
        yield Conflict(("zero_optimization", "stage"), given, "strategy.stage", _said(strategy["stage"]), hint)
    for name in ("offload_optimizer", "offload_param"):
        section = _inner(zero, name)
        device = section.get("device", AUTO)
        if device not in (AUTO, offload):
            path = ("zero_optimization", name, "device")
            hint = f"strategy.offload={device}, or leave it out here"
            yield Conflict(path, device, "strategy.offload", _said(offload), hint)
        folder = section.get("nvme_path", AUTO)
        if folder not in (AUTO, None, strategy["nvme_folder"]):
            path, field = ("zero_optimization", name, "nvme_path"), "strategy.nvme_folder"
            yield Conflict(path, folder, field, _said(strategy["nvme_folder"]), "say it there alone")


def _numbers(strategy: Mapping[str, Any], native: Mapping[str, Any]) -> Iterator[Conflict]:
    for name, ours in (("bf16", strategy["precision"] == "bf16"), ("fp16", False)):
        given = _inner(native, name).get("enabled", AUTO)
        if given not in (AUTO, ours):
            hint = "strategy.precision=bf16" if name == "bf16" and given else "say it there alone"
            said = _said(strategy["precision"])
            yield Conflict((name, "enabled"), given, "strategy.precision", said, hint)


def _inner(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = section.get(name)
    return inner if isinstance(inner, Mapping) else {}


def _said(value: Any) -> str:
    return "null" if value is None else repr(value) if isinstance(value, str) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
