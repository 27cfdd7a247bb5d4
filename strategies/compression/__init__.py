"""Codecs: trees as few bytes, and back; chained, seeded, bound to a model, with error feedback.

Start with `build([{"name": "top-k", "keep": 0.01}, {"name": "int8"}])`; docs/compression.md says what each is.
"""

from __future__ import annotations

from strategies.compression.base import MAX_BYTES, Codec, CodecError
from strategies.compression.casting import BF16, FP16, Int8
from strategies.compression.chain import Chain, chain
from strategies.compression.error_feedback import Compensated, compensate, insist_contractive
from strategies.compression.fedzip import FedZip
from strategies.compression.fedzip_count import Count, authors_bits
from strategies.compression.names import CODECS, arguments, build, codec
from strategies.compression.powersgd import PowerSGD
from strategies.compression.qsgd import QSGD
from strategies.compression.randomk import RandomK
from strategies.compression.signsgd import SignSGD
from strategies.compression.terngrad import TernGrad
from strategies.compression.topk import TopK
from strategies.compression.zstd import Zstd

__all__ = [
    "BF16",
    "CODECS",
    "FP16",
    "MAX_BYTES",
    "QSGD",
    "Chain",
    "Codec",
    "CodecError",
    "Compensated",
    "Count",
    "FedZip",
    "Int8",
    "PowerSGD",
    "RandomK",
    "SignSGD",
    "TernGrad",
    "TopK",
    "Zstd",
    "arguments",
    "authors_bits",
    "build",
    "chain",
    "codec",
    "compensate",
    "insist_contractive",
]
