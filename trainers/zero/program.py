"""What each rank of a ZeRO gang is: an engine, its shares of batches, and its files; `trainers.loop` runs it.

The first rank speaks; every rank is drawn, and writes what it holds of a state by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import torch

from trainers import loop, shards, wire
from trainers.data.base import Dataset
from trainers.loop import Context, When
from trainers.shards import Piece, ShardFile, Shards, pieces_of
from trainers.zero import engine
from trainers.zero.rank import Rank, torch_dtype
from trainers.zero.saving import Saving
from trainers.zero.settings import Settings
from trainers.zero.state import Source, Whole, pieces, remembered, restore


def run(
    context: Context,
    *,
    settings: Mapping[str, Any],
    dataset: Dataset,
    start: Mapping[str, Any],
    evaluate_batch: int,
    folder: str,
    **when: Unpack[When],
) -> None:
    """Train from step `begin + 1` to the last, or until the driver says `stop`.

    Args:
        settings: of `settings.Settings`, as a mapping.
        start: the state to begin with: nothing, for the model that the seed stands for; `folder` and `files`
            (`ShardFile` as mappings) of what ranks wrote; or tree -> Arrow bytes.
        evaluate_batch: test examples of one forward pass.
        folder: of checkpoints; this rank's part goes to `step-000010/shard-0-of-2.arrow` in it.
        when: see `loop.Plan`.

    Raises:
        Unsuitable: when DeepSpeed cannot do here what is asked for.
        ShardError: when a file is missing or damaged, and by name, which.
    """
    plain = Settings(**settings)
    device = torch.device(context.device)
    made = engine.make(plain, dataset, device)
    source = _source(start, context.rank, context.world_size)
    if source is not None:
        restore(made.engine, source, context.rank, plain.optimizer)
    rank = Rank(plain, dataset, made, context.rank, device, evaluate_batch)
    if source is not None:
        rank.kept.restore(remembered(source))

    def held() -> Iterator[Piece]:
        yield from pieces(made.engine, context.rank, plain.ranks, torch_dtype(plain))
        if context.rank == 0:
            for tree, tensors in rank.kept.trees().items():
                yield from pieces_of(tree, tensors.items(), 0, 1)

    saving = Saving(folder, f"shard-{context.rank}-of-{plain.ranks}.arrow", held)
    number = context.rank
    plan = loop.Plan(steps=plain.steps, speaks=number == 0, drawn=number, saves=number, **when)
    loop.train(context, rank, plan, saving)


def _source(start: Mapping[str, Any], rank: int, ranks: int) -> Source | None:
    """Return what to begin from; of files, each rank checks some, and all together check all."""
    if not start:
        return None
    if "files" not in start:
        return Whole(wire.decode_trees(start, copy=False))
    files = [ShardFile(**file) for file in start["files"]]
    shards.check(start["folder"], files[rank::ranks])
    return Shards.open(start["folder"], files, verify=False)
