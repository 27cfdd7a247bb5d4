"""A transport to nobody, for ceilings: a stage works beside another one and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from trainers.pipeline.transport import Key, Spec


class Silent:
    """Delivers what `make` makes of a message's specification at once, and sends nothing."""

    sent_bytes = 0

    def __init__(self, make: Callable[[Spec], Tensor]) -> None:
        self._make = make
        self._specs: dict[Key, Sequence[Spec]] = {}

    def expect(self, key: Key, specs: Sequence[Spec], source: int) -> None:
        self._specs[key] = specs

    def ready(self, key: Key) -> bool:
        return True

    def receive(self, key: Key) -> dict[str, Tensor]:
        return {spec.name: self._make(spec) for spec in self._specs.pop(key)}

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        pass

    def send(self, key: Key, tensors: Mapping[str, Tensor], target: int) -> None:
        pass

    def flush(self) -> None:
        pass
