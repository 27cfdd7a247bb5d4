"""A user's own model, as `examples/zero_finetune.yaml` names it: an encoder of image rows, frozen but for its end.

Nothing is downloaded. A model of the transformers library goes the same way: a function that returns it, with
`requires_grad_(False)` on what is to stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Output:
    """What the model returns, beside other things that nobody asks for here."""

    logits: Tensor
    hidden: Tensor


class Classifier(nn.Module):
    """Rows of an image as a sequence, an encoder over them, and a head on their mean."""

    def __init__(self, rows: int, columns: int, width: int, layers: int, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(columns, width)
        self.places = nn.Parameter(0.02 * torch.randn(rows, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixels: Tensor) -> Output:
        hidden = self.encoder(self.embed(pixels.flatten(1, 2)) + self.places)
        return Output(logits=self.head(hidden.mean(dim=1)), hidden=hidden)


def build(width: int, layers: int, trained_layers: int, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the model; of its encoder, only the last layers train, and the head."""
    _, rows, columns = input_shape
    model = Classifier(rows, columns, width, layers, num_classes)
    model.requires_grad_(False)
    for part in (*model.encoder.layers[layers - trained_layers :], model.head):
        part.requires_grad_(True)
    return model
