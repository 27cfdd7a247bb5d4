"""Reserve a bundle of resources for each worker, after counting that it can be had.

A pool makes a placement group of its own. Inside a Ray Tune trial it takes the bundles that the trial holds
already, because nested groups wait for each other and leak; a trial's last bundles are its workers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster import inventory, placement
from cluster.errors import PlacementFailed


class Bundles(NamedTuple):
    """A placement group and which of its bundles belong to the workers.

    Args:
        group: Ray's placement group.
        indices: for each worker its bundle.
        owned: whether we made the group and remove it.
    """

    group: Any
    indices: tuple[int, ...]
    owned: bool


def check(resources: Mapping[str, float], num_workers: int, strategy: placement.Strategy) -> None:
    """Raise `PlacementFailed` with need versus have when the nodes, were they idle, could not hold the workers."""
    if _trial_group() is None:
        count(resources, num_workers, strategy)


def count(resources: Mapping[str, float], num_workers: int, strategy: placement.Strategy) -> None:
    """Raise `PlacementFailed` like `check`, also inside a trial: for workers that get a group of their own."""
    nodes = inventory.of_cluster()
    counted = placement.place([resources] * num_workers, nodes, strategy)
    if not counted.fits:
        raise PlacementFailed(placement.reason(counted, len(nodes)), placement.table(counted))


def busy(
    resources: Mapping[str, float], num_workers: int, strategy: placement.Strategy, timeout_s: float
) -> PlacementFailed:
    """Return the error for places that fit but did not become free in time."""
    counted = placement.place([resources] * num_workers, inventory.of_cluster(), strategy)
    return PlacementFailed(
        f"no place for {placement.workers(num_workers)} within {timeout_s:g} s: other work holds what they need",
        placement.table(counted),
    )


def reserve(
    resources: Mapping[str, float], num_workers: int, strategy: placement.Strategy, timeout_s: float
) -> Bundles:
    """Return one bundle a worker, waiting for busy resources at most `timeout_s`.

    Raises:
        PlacementFailed: when they are not there in time, or a trial holds too few.
    """
    from ray.util.placement_group import placement_group

    group = _trial_group()
    if group is not None:
        return _of_trial(group, resources, num_workers)
    check(resources, num_workers, strategy)
    group = placement_group([dict(resources)] * num_workers, strategy=strategy.upper())
    bundles = Bundles(group, tuple(range(num_workers)), True)
    try:
        if group.wait(timeout_seconds=timeout_s):
            return bundles
        raise busy(resources, num_workers, strategy, timeout_s)
    except BaseException:
        release(bundles)
        raise


def release(bundles: Bundles) -> None:
    """Give the bundles back, if the group is ours; workers in it are killed."""
    from ray.util.placement_group import remove_placement_group

    if bundles.owned:
        remove_placement_group(bundles.group)


def made_by(actor_id: str) -> dict[str, str]:
    """List the placement groups that an actor made, by id, with their states: `PENDING`, `CREATED`, ..., `REMOVED`.

    Only Ray's raw records name the maker. A group outlives the actor that made it, as long as the driver runs.
    """
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    table = state._connect_and_get_accessor().get_placement_group_table()
    records = [gcs_pb2.PlacementGroupTableData.FromString(raw) for raw in table]
    names = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Name
    return {
        record.placement_group_id.hex(): names(record.state)
        for record in records
        if record.creator_actor_id.hex() == actor_id
    }


def release_made_by(actor_id: str) -> None:
    """Remove the placement groups that an actor made; what still runs in them is killed."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for name, state in made_by(actor_id).items():
        if state != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _trial_group() -> Any:
    from ray.util.placement_group import get_current_placement_group

    return get_current_placement_group()


def _of_trial(group: Any, resources: Mapping[str, float], num_workers: int) -> Bundles:
    import ray

    specs = group.bundle_specs
    taken = int(any(ray.get_runtime_context().get_assigned_resources().values()))  # the trial's own bundle, the first
    first = len(specs) - num_workers
    if first < taken:
        have = f"the trial holds {len(specs)} bundles" + (", one of them its own" if taken else "")
        raise PlacementFailed(f"{have}, and {placement.workers(num_workers)} need one each")
    for index in range(first, len(specs)):
        small = [name for name, amount in resources.items() if specs[index].get(name, 0) < amount]
        if small:
            raise PlacementFailed(f"bundle {index} of the trial holds {dict(specs[index])}, a worker needs {resources}")
    return Bundles(group, tuple(range(first, len(specs))), False)
