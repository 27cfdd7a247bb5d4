"""What all models share: the error they raise when they do not fit the data, and how to name one that does."""

from __future__ import annotations

from trainers.errors import HintedError


class ModelError(HintedError):
    """A model cannot be built as asked for."""


def require_image(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width of image-shaped inputs.

    Raises:
        ModelError: when the examples are not images.
    """
    if len(input_shape) != 3:
        raise ModelError(
            f"model {model} needs images, channels x height x width, but an example has shape {input_shape}",
            "use model.name: mlp or logistic, or give the data a shape such as [1, 28, 28]",
        )
    channels, height, width = input_shape
    return channels, height, width
