"""Models that do not list their layers, traced with torch.fx and cut into pieces that compute exactly what they do.

tracer    one trace, and its errors in words: module and line
modes     traces in training and in evaluation, joined
live      which values may travel between pieces, and which every piece computes for itself
memory    views, and changes in place
faithful  what is refused, because pieces would compute something else
pieces    where to cut
"""

from trainers.pipeline.tracing.pieces import traced

__all__ = ["traced"]
