"""Tiny Shakespeare: a character language model whose natural clients are the speakers of the plays.

Speakers are read off the text itself: a paragraph that begins with a line `NAME:` is a speech of NAME. Names such as
"First Citizen" occur in several plays and are one client. Stage directions stay part of speeches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainers.data.base import LANGUAGE_MODEL, DataError, Dataset
from trainers.data.download import RemoteFile, ensure

FILE = RemoteFile(
    "tinyshakespeare/input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    1115394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
TRAIN_FRACTION = 0.9
_NAME_LINE = re.compile(r"(?:\A|(?<=\n\n))([^\n]+):\n")


class Speech(NamedTuple):
    """What one speaker says at a stretch: `text[start:stop]`, without the name line and surrounding blanks."""

    speaker: str
    start: int
    stop: int


def load(folder: Path, sequence_length: int = 80, stride: int | None = None) -> Dataset:
    """Return sequences of characters, each followed by its next characters, with speakers as clients.

    The speeches that begin in the first 90 % of the text are for training, the others for testing. A speaker's speeches
    are joined by newlines, in order, and cut into sequences, so a sequence never mixes speakers. Speakers with less
    than one sequence, and what remains at the end of a speaker's text, are left out.

    Args:
        sequence_length: characters a model sees at once.
        stride: characters between the beginnings of sequences; `sequence_length` when None.

    Raises:
        DataError: when the file cannot be had, or no speaker fills a sequence.

    Shapes: x and y `[n, sequence_length]` uint8, `y[:, t]` the character after `x[:, t]`.

    Source: text of karpathy/char-rnn, 90/10 split as in nanoGPT; speakers as clients after McMahan et al. 2017,
    arXiv:1602.05629, section 3.
    """
    text = ensure(folder, FILE).read_text(encoding="ascii")
    alphabet = np.array(sorted(set(text)))
    codes = np.searchsorted(alphabet, np.array(list(text))).astype(np.uint8)
    newline = int(np.searchsorted(alphabet, "\n"))
    stride = stride or sequence_length
    spoken = speeches(text)
    border = TRAIN_FRACTION * len(text)
    train = _sequences(codes, [s for s in spoken if s.start < border], newline, sequence_length, stride)
    test = _sequences(codes, [s for s in spoken if s.start >= border], newline, sequence_length, stride)
    if not train or not test:
        raise DataError(
            f"no speaker of tiny-shakespeare says {sequence_length + 1} characters in both parts of the text",
            "lower data.sequence_length; the usual value is 80",
        )
    windows, test_windows = np.concatenate(list(train.values())), np.concatenate(list(test.values()))
    return Dataset(
        name="tiny-shakespeare",
        task=LANGUAGE_MODEL,
        train_x=np.ascontiguousarray(windows[:, :-1]),
        train_y=np.ascontiguousarray(windows[:, 1:]),
        test_x=np.ascontiguousarray(test_windows[:, :-1]),
        test_y=np.ascontiguousarray(test_windows[:, 1:]),
        num_classes=len(alphabet),
        input_shape=(sequence_length,),
        client_of=np.repeat(np.arange(len(train), dtype=np.int32), [len(own) for own in train.values()]),
        client_names=tuple(train),
        class_names=tuple(alphabet.tolist()),
    )


def speeches(text: str) -> list[Speech]:
    """Return the speeches of a play in order; name lines without a speech are left out."""
    names = list(_NAME_LINE.finditer(text))
    ends = [name.start() for name in names[1:]] + [len(text)]
    found = []
    for name, end in zip(names, ends, strict=True):
        body = text[name.end() : end]
        start = name.end() + len(body) - len(body.lstrip())
        stop = name.end() + len(body.rstrip())
        if start < stop:
            found.append(Speech(" ".join(name.group(1).split()), start, stop))
    return found


def _sequences(
    codes: np.ndarray, spoken: list[Speech], newline: int, length: int, stride: int
) -> dict[str, np.ndarray]:
    """Return each speaker's sequences of `length + 1` characters, speakers in alphabetical order."""
    parts: dict[str, list[np.ndarray]] = {}
    for speech in spoken:
        parts.setdefault(speech.speaker, []).extend((codes[speech.start : speech.stop], np.array([newline], np.uint8)))
    result = {}
    for speaker in sorted(parts):
        own = np.concatenate(parts[speaker])
        if len(own) > length:
            result[speaker] = np.lib.stride_tricks.sliding_window_view(own, length + 1)[::stride]
    return result
