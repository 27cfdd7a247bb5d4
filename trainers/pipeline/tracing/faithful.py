"""What a traced graph shows of a model that a chain of pieces would compute in another way than the model: refused."""

from __future__ import annotations

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from trainers.models.base import ModelError
from trainers.pipeline.tracing.memory import changed, reshapes, storage
from trainers.pipeline.tracing.tracer import HINT, where


def attribute(model: nn.Module, node: fx.Node) -> object:
    """Return what a node reads from the model, None for nodes that read nothing."""
    if node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    return getattr(model.get_submodule(owner), name, None)


def check(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse what pieces would compute in another way.

    Raises:
        ModelError: naming the module, tensor or line.
    """
    name = type(model).__name__
    used: set[int] = set()
    norms: set[int] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            used.update(map(id, (*module.parameters(), *module.buffers())))
            if isinstance(module, _BatchNorm | _InstanceNorm) and module.track_running_stats:
                if id(module) in norms:
                    raise ModelError(
                        f"{name} runs {node.target} ({type(module).__name__}) twice, which mixes their statistics",
                        "give each use a norm of its own",
                    )
                norms.add(id(module))
        elif node.op == "get_attr" and isinstance(attribute(model, node), Tensor):
            used.add(id(attribute(model, node)))
        if reshapes(node):
            raise ModelError(
                f"{name} changes a shape in place, in {where(node)}", f"make a new view instead, or {HINT}"
            )
        target = changed(model, node)
        root = None if target is None else storage(model, target)
        if root is not None and (root.op == "get_attr" or target.op == "placeholder"):
            what = str(root.target) if root.op == "get_attr" else "the model's input"
            what = "a tensor of its own making" if what.startswith("_tensor_constant") else what
            raise ModelError(
                f"{name} changes {what} in place, in {where(node)}, and again whenever a stage runs it again",
                f"compute a new tensor instead, or {HINT}",
            )
        if node.op == "output":
            values = node.args[0] if isinstance(node.args[0], tuple) else (node.args[0],)
            if not all(isinstance(value, fx.Node) for value in values):
                kind = type(node.args[0]).__name__.removeprefix("immutable_")
                raise ModelError(f"{name} returns a {kind}", "return a tensor or a tuple of tensors")
    for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in used:
            raise ModelError(f"{tensor_name!r} takes no part in the forward of {name}", f"use it, remove it, or {HINT}")
