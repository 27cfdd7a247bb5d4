"""pfl-research (`pip install pfl`), two processes under torchrun with gloo.

    torchrun --nproc-per-node 2 -m benchmarks.peers.pfl_side TASK ROUNDS default|tuned

Written against its public interface, with what its documentation recommends for speed: user data sets are tensors in
memory, cut as they are asked for; every process has one thread; users are all of equal size, so that balancing by
`user_id_to_weight` has nothing to balance; no evaluation (`evaluation_frequency` beyond the last iteration; iteration 0
evaluates always and is left out of the figures) and no metrics to the platform. Which users come is a sampler of ours,
a plain sequence. The weights are those of `WeightByDatapoints`.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pfl
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.peers.task import Laps, Task, arguments, finish


class Network(nn.Sequential):
    """The task's model with the two methods that pfl asks for."""

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        return nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Weighted]:
        with torch.no_grad():
            return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Clock(TrainingProcessCallback):
    """Says the seconds of each central iteration, in the first process."""

    def __init__(self, speaks: bool) -> None:
        self._laps, self._speaks = Laps(), speaks

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self._laps.start()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if self._speaks:
            self._laps.lap()
        return False, Metrics()


def main() -> None:
    folder, rounds, tuned = arguments()
    torch.set_num_threads(1)
    np.random.seed(0)  # the same in both processes, as pfl asks for
    task = Task(folder, rounds, tuned)
    task.load()
    network = task.initialised(Network(*task.layers()))
    create = partial(torch.optim.SGD, fused=True) if tuned else torch.optim.SGD
    model = PyTorchModel(network, create, torch.optim.SGD(network.parameters(), lr=1.0))
    sequence = product(range(task.rounds), range(task.cohort))

    def user(place: tuple[int, int]) -> PyTorchTensorDataset:
        return PyTorchTensorDataset(task.examples(*place), user_id=str(place))

    data = FederatedDataset(user, lambda: next(sequence))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds + 1,
            train_cohort_size=task.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=task.lr, local_batch_size=task.batch_size),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Clock(pytorch_ops.distributed.global_rank == 0)],
        send_metrics_to_platform=False,
    )
    if pytorch_ops.distributed.global_rank == 0:
        finish(task, network, pfl=pfl.__version__)
    torch.distributed.barrier()  # a process that ends while the other still measures may abort
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
