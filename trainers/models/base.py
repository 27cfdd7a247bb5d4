"""What all models share: the error they raise when they do not fit the data, and how to name one that does."""

from __future__ import annotations


class ModelError(Exception):
    """A model cannot be built as asked for.

    Args:
        message: what was given and what was expected.
        hint: what to write instead; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


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
