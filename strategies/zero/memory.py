"""What a rank holds at each stage of ZeRO: bytes of weights, gradients, optimizer states, buffers and activations.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(arXiv:1910.02054), sections 3.1 and 5. With P parameters on N ranks, weights of w bytes, gradients of g, and K bytes
of optimizer states a parameter (Adam in mixed precision: w = g = 2 and K = 12, a copy of the weights and two moments
in float32):

    stage 0    (w + g + K) P
    stage 1    (w + g) P + K P / N
    stage 2    w P + (g + K) P / N
    stage 3    (w + g + K) P / N, and what is gathered at a time

Beyond the paper, after what DeepSpeed 0.19 was seen to keep: stages 1 to 3 update a copy of a rank's share of the
weights also where these are float32 already (K is 4 more); weights that are not trained have neither gradients nor
states; at stage 3 every rank has weights of few elements whole, beside its share of all, and gathers those of modules
in use, up to a limit; gradients pass through a bucket. Offload moves the optimizer states (stages 1 to 3), their
gradients' share, and at stage 3 the weights' share to the host, or to a disk.

Left out: the process itself, allocators' caches, and temporaries of single operations.
"""

from __future__ import annotations

from typing import NamedTuple

STAGES = (0, 1, 2, 3)


class Model(NamedTuple):
    """Sizes of a model, in elements, and of what it does with a rank's examples, in bytes.

    Args:
        total, trained: parameters, and those that are trained. largest: of the module with most of its own.
        small: of those parameters that stage 3 keeps whole on every rank.
        activation_bytes: that autograd keeps of one rank's part of a batch.
    """

    total: int
    trained: int
    largest: int
    small: int = 0
    activation_bytes: int = 0


class Numbers(NamedTuple):
    """How numbers are kept.

    Args:
        weight, gradient: bytes of one in forward and backward; 4, or 2 for bf16. state: of one in the optimizer.
        slots: numbers that the optimizer remembers of each parameter: Adam 2, SGD 0, with momentum 1.
        bucket: elements of gradients that are reduced together. live: elements that stage 3 may have gathered at once,
            where a single module does not need more.
    """

    weight: int = 4
    gradient: int = 4
    state: int = 4
    slots: float = 2.0
    bucket: int = 0
    live: int = 0


class Held(NamedTuple):
    """Bytes of one rank, by what they are.

    Args:
        gathered: weights of others that stage 3 has for a while, and gradients on their way.
        offloaded: of parameters, gradients and optimizer together, those that are not in the device's memory.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations

    @property
    def on_device(self) -> int:
        return self.total - self.offloaded


def held(model: Model, numbers: Numbers, *, ranks: int, stage: int, offload: str = "none") -> Held:
    """Return what each rank holds; shares are rounded up, as DeepSpeed pads them.

    Args:
        offload: `none`, `cpu` or `nvme`.

    Raises:
        ValueError: when there is no such stage, or stage 0 would offload.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage}, expected 0, 1, 2 or 3")
    if offload != "none" and stage == 0:
        raise ValueError("stage 0 shares nothing out, so there is nothing to offload")
    shares = [1 if stage < least else ranks for least in (3, 2, 1)]  # of weights, of gradients, of optimizer states
    whole = model.small if stage == 3 else 0
    weights = whole + _share(model.total, shares[0])
    gradients = _share(model.trained, shares[1]) * numbers.gradient
    copied = stage > 0 or numbers.weight < numbers.state
    each = numbers.state * (numbers.slots + (1 if copied else 0))
    optimizer = int(_share(model.trained, shares[2]) * each)
    gathered = min(numbers.bucket, model.trained) * numbers.gradient if ranks > 1 or stage else 0
    if stage == 3 and ranks > 1:
        gathered += min(max(model.largest, numbers.live), model.total - model.small) * numbers.weight
    offloaded = optimizer if offload != "none" else 0
    if offload != "none" and stage >= 2:
        offloaded += gradients
    if offload != "none" and stage == 3:
        offloaded += (weights - whole) * numbers.weight
    return Held(weights * numbers.weight, gradients, optimizer, gathered, model.activation_bytes, offloaded)


def smallest(
    model: Model, numbers: Numbers, *, ranks: int, limit: int, offload: str = "none", host_counts: bool = True
) -> int | None:
    """Return the smallest stage at which a rank holds no more than `limit` bytes; None when there is none.

    Args:
        host_counts: whether what is offloaded to the host counts, as it does where ranks train on the CPU.
    """
    for stage in STAGES[1 if offload != "none" else 0 :]:
        found = held(model, numbers, ranks=ranks, stage=stage, offload=offload)
        if (found.total if host_counts and offload != "nvme" else found.on_device) <= limit:
            return stage
    return None


def _share(number: int, ranks: int) -> int:
    return -(-number // ranks)
