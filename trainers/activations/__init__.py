"""What autograd keeps for backward, in 8 bits: saved-tensor hooks around layers, and which tensors they leave alone.

    saver = Saver(memory, {index: (name, module), ...})       None in place of memory: no saver, and no cost
    with saver.microbatch(part, seed):
        with saver.layer(index, arguments) as layer:
            returned = layer.returned(module(*arguments))
    saver.commit()                                            once a step

`Saving` is this for a whole model in one process.

Forward passes are exact. Left as they are: parameters, also as autocast casts them; whole numbers; one-dimensional and
small tensors; *statistics*, which have at most an eighth of the numbers of the layer's input (LayerNorm's, the
log-sum-exp of attention: their error would scale whole rows); tensors that are expanded from few numbers; what stays in
memory anyway; and what the policy says. Masks of true and false are kept as bits, exactly.

A block of memory that several operations of a layer save, whole or in views, is encoded once. Bits do not depend on
where a model is cut: each tensor is rounded by a seed of (step, micro-batch, layer, place), and what one layer returns
and the next one saves is encoded as the next one's input, by whichever saves it.

Left out: second derivatives, and the check of autograd that no saved tensor was changed in place; what is decoded is
what was saved, so nothing goes wrong unseen.

Source: Mesa, arXiv:2111.11124; `torch.autograd.graph.saved_tensors_hooks`.
"""

from __future__ import annotations

from trainers.activations.packed import Packed, Piece, unpack
from trainers.activations.policy import Policy, heads_of, part_names, unused_patterns
from trainers.activations.ranges import ALPHA, BETA, SUFFIX, Trees, export_running, remembers, restore_running
from trainers.activations.saver import Saver
from trainers.activations.whole import Saving

__all__ = [
    "ALPHA", "BETA", "SUFFIX", "Packed", "Piece", "Policy", "Saver", "Saving", "Trees", "export_running",
    "heads_of", "part_names", "remembers", "restore_running", "unpack", "unused_patterns",
]  # fmt: skip
