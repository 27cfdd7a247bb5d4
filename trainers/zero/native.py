"""From settings to what DeepSpeed reads: our fields, over the user's own, over defaults that suit models of this size.

What a user's configuration may not say otherwise than the experiment file is found before a run begins
(`strategies.zero.native`); here ours simply win. Its `optimizer` and `scheduler` are left out: the optimizer is built
by `trainers.optimizers` and handed over, so that any class of `torch.optim` will do. That is why
`zero_allow_untested_optimizer` is set, and `zero_force_ds_cpu_optimizer` is not: DeepSpeed's own CPU Adam is compiled
at the first use, and moves weights by other roundings.

Defaults, where neither says anything. DeepSpeed's are made for 10^9 parameters and more: with them, a model of 10^8 is
kept whole from its first layer's forward to the last one's backward, and reduced in one bucket as large as itself.

    reduce_bucket_size, allgather_bucket_size     an eighth of the model, or its largest parameter
    stage3_max_live_parameters                    an eighth, or twice its largest parameter
    stage3_max_reuse_distance, _prefetch_...      none, and a quarter of what may be live
    stage3_param_persistence_threshold            10^4: smaller ones are not worth a message
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.zero.settings import Settings

_AUTO = "auto"
_OURS_ALONE = ("optimizer", "scheduler", "train_micro_batch_size_per_gpu", "fp16")
PERSISTENT = 10_000

WHOLE_TENSORS = ("adafactor", "muon")
"""Optimizers of `torch.optim` that look at a parameter as a matrix; all others move each element by itself."""


class Unsuitable(Exception):
    """DeepSpeed cannot do here what settings ask for; says what to ask for instead."""


def configuration(settings: Settings, sizes: Sequence[int]) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Args:
        sizes: elements of each parameter of the model.
    """
    live = max(2 * max(sizes), sum(sizes) // 8)
    bucket = max(1, max(sizes), sum(sizes) // 8)
    zero: dict[str, Any] = {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket + bucket % 2,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": live // 4,
        "stage3_param_persistence_threshold": PERSISTENT,
    }
    micro = -(-settings.batch_size // settings.ranks)  # DeepSpeed wants a whole number, and only reports by it
    ours: dict[str, Any] = {
        "train_batch_size": micro * settings.ranks * settings.accumulate,
        "gradient_accumulation_steps": settings.accumulate,
        "gradient_clipping": (settings.clip_norm or 0.0) if settings.stage else 0.0,  # at stage 0, see `rank`
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": settings.stage, **_offload(settings)},
    }
    theirs = {key: value for key, value in settings.deepspeed.items() if key not in _OURS_ALONE}
    return _merged(_merged({"steps_per_print": None, "zero_optimization": zero}, theirs), ours)


def _offload(settings: Settings) -> dict[str, Any]:
    if settings.offload == "none":
        return {}
    where: dict[str, Any] = {"device": settings.offload}
    if settings.offload == "nvme":
        where["nvme_path"] = settings.nvme_folder
    parts = ("offload_optimizer", "offload_param") if settings.stage == 3 else ("offload_optimizer",)
    return dict.fromkeys(parts, where)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return one mapping over another, inner ones likewise; `auto` leaves what is under it."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if value == _AUTO:
            continue
        inner = isinstance(value, Mapping)
        result[key] = _merged(below if isinstance(below, Mapping) else {}, value) if inner else value
    return result


def insist_possible(settings: Settings) -> None:
    """Insist that model, stage, optimizer and offload go together, and with this machine.

    Raises:
        Unsuitable: when they do not.
    """
    if settings.model["dtype"] != "float32":
        raise Unsuitable(f"DeepSpeed moves float32 weights, got model.dtype {settings.model['dtype']}; set float32")
    name = str(settings.optimizer["name"]).lower()
    if settings.stage and name in WHOLE_TENSORS:
        raise Unsuitable(
            f"{name} looks at whole matrices, but at stage {settings.stage} each rank moves a flat part of them; "
            "set strategy.stage=0, or another optimizer"
        )
    if settings.offload == "nvme":
        if settings.stage != 3:
            raise Unsuitable(f"offload nvme works at stage 3 only, got stage {settings.stage}; set strategy.stage=3")
        missing = _missing_for_nvme()
        if missing:
            raise Unsuitable(f"offload nvme needs {missing} on every node; install it, or set strategy.offload=cpu")


def _missing_for_nvme() -> str:
    """Return what DeepSpeed's asynchronous reads and writes lack on this machine; empty for nothing."""
    from ctypes.util import find_library

    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        return "ninja, with which DeepSpeed compiles its reads and writes"
    if shutil.which("c++") is None:
        return "a C++ compiler, with which DeepSpeed compiles its reads and writes"
    return "" if find_library("aio") else "libaio and its headers (libaio-dev)"
