"""The client of `flower_side`, in a module of its own: Ray then sends its name to the actors and not its code."""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from benchmarks.peers.task import Task

app = ClientApp()


@cache
def kept(folder: str, tuned: bool) -> tuple[Task, nn.Module]:
    """Return the task and a model, made once an actor."""
    torch.set_num_threads(1)
    task = Task(folder, tuned=tuned)
    task.load()
    return task, task.initialised(nn.Sequential(*task.layers()))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the arrays that came and answer with new ones."""
    config = message.content["config"]
    task, model = kept(str(config["folder"]), bool(config["tuned"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    count = task.train(model, int(config["round"]), int(config["place"]))
    answer = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": count})}
    return Message(RecordDict(answer), reply_to=message)
