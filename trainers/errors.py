"""What errors that reach a user have in common."""

from __future__ import annotations


class HintedError(Exception):
    """An error that says what to do next; survives pickling.

    Args:
        message: what was given and what was expected.
        hint: what to do next; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message
