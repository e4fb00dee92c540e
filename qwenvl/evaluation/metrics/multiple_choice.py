"""Multiple choice by likelihood (paper 4.2, 4.5): the option letter the model finds likeliest, never free text.

Prompts of ScienceQA (Table 4) and SEED-Bench (Table 7) as the release writes them, the video frames SEED-Bench shows,
and the choice itself: the smallest *mean* negative log-likelihood over the tokens of an option.
"""

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.datasets.sample import LETTERS
from qwenvl.data.datasets.seed import FRAMES as SEED_FRAMES


def lettered(options: Sequence[str]) -> list[str]:
    """`A. first`, `B. second`, ...; an empty option is left out. ValueError beyond 26 options."""
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options; at most {len(LETTERS)} can be lettered.")
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False) if option]


def continuations(letters: Iterable[str]) -> list[str]:
    """What is scored after the prompt, for each option: a space and its letter (one token each)."""
    return [f" {letter}" for letter in letters]


def scienceqa_prompt(image: str, question: str, choices: Sequence[str], hint: str | None) -> str:
    """The prompt of a ScienceQA question; no hint is written as N/A."""
    options = "\n".join(lettered(choices))
    return f"<img>{image}</img>Context: {hint or 'N/A'}\nQuestion: {question}\nOptions: {options}\nAnswer:"


def seed_prompt(images: Sequence[str], question: str, choices: Sequence[str]) -> str:
    """The prompt of a SEED-Bench question about one image or the frames of a video, each on a line of its own."""
    shown = "".join(f"<img>{image}</img>\n" for image in images)
    options = "\n".join(lettered(choices))
    return f"{shown}Question: {question}\nOptions: {options}\nAnswer:"


def seed_image(folder: str, data_id: str) -> str:
    """Where a SEED-Bench record's image lies."""
    return posixpath.join(folder, data_id)


def seed_frame_names(question_id: str, count: int, folder: str = f"video_imgs_{SEED_FRAMES}") -> list[str]:
    """The names under which the release stores the frames shown for a video question."""
    return [f"{folder}/{question_id}_{i}.jpg" for i in range(count)]


def even_frames(frames: int, count: int) -> list[int]:
    """`count` evenly spaced frame numbers in 0 .. frames - 1, or all frames if there are fewer than `count`."""
    if frames < count:
        return list(range(frames))
    step = (frames - 1) / count
    return [int(step / 2) + int(np.round(step * i)) for i in range(count)]


def seed_frames(
    frames: int, fps: float, segment: Sequence[float] | None = None, count: int = SEED_FRAMES
) -> list[int]:
    """Frame numbers shown for a video of `frames` frames, of which only `segment` (start, end in seconds) matters.

    The last frame is never counted, as in the release.
    """
    first, last = 0, frames - 1
    if segment is not None:
        first, last = int(segment[0] * fps), min(int(segment[1] * fps), last)
    return [first + i for i in even_frames(last - first, count)]


@dataclass(frozen=True)
class Choice:
    """The likelihoods of a question's options and what follows from them."""

    nll_sums: NDArray[np.float32]
    """Sum over an option's tokens of the negative log-likelihood, in nats."""
    lengths: NDArray[np.int64]
    """Tokens of each option."""

    @property
    def mean_nll(self) -> NDArray[np.float32]:
        """Nats per token of each option."""
        return np.divide(self.nll_sums, self.lengths, dtype=np.float32)

    @property
    def chosen(self) -> int | None:
        """Index of the likeliest option, the first on a tie; None if any likelihood is not a number."""
        return likeliest(self.mean_nll)


def likeliest(nll: NDArray[np.float32]) -> int | None:
    """Index of the smallest negative log-likelihood, the first on a tie; None if any is not a number."""
    return None if np.isnan(nll).any() else int(np.argmin(nll))


def choose(logprobs: Sequence[Sequence[float] | NDArray[Any]], lengths: Sequence[int]) -> Choice:
    """The choice from each option's token log-probabilities; the last `lengths[i]` positions are option i's tokens."""
    rows = [np.asarray(row, np.float32) for row in logprobs]
    if not rows or len(rows) != len(lengths):
        raise ValueError(
            f"{len(rows)} rows of log-probabilities for {len(lengths)} option lengths; expected one each."
        )
    for row, length in zip(rows, lengths, strict=True):
        if not 0 < length <= len(row):
            raise ValueError(
                f"an option of {length} tokens in a row of {len(row)}; expected 1 to {len(row)}."
            )
    sums = [
        -row[len(row) - length :].sum(dtype=np.float32) for row, length in zip(rows, lengths, strict=True)
    ]
    return Choice(np.asarray(sums, np.float32), np.asarray(lengths, np.int64))


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token rows padded on the left to the longest, and the mask that is 1 on real tokens, whatever their id."""
    width = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return ids, mask
