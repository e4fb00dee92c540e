"""Prompts on their way to the model: checked and padded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from qwenvl.model.vlm import QwenVL

LONGEST_ROW = 32_768
"""Tokens of prompt and answer together, where the official table of log-n ends; more if training rows were longer."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row: ids as `markup.render` makes them, and the pixels of its images in order."""

    ids: tuple[int, ...]
    pixels: tuple[Float32[np.ndarray, "3 side side"], ...] = ()
    """As `images.preprocess` makes them. Prompts may share images: each is encoded once."""
    digests: tuple[bytes, ...] = ()
    """`visual.digest` of each image, from who has computed them already."""
    seed: int = 0
    """Together with `Settings.seed`, all that random draws for this row depend on."""


def left_padded(
    rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Rows of ids flush right, and for each its position in its row; positions of the padding are negative."""
    longest = max(map(len, rows))
    ids = torch.tensor([[fill] * (longest - len(row)) + list(row) for row in rows])
    starts = torch.tensor([longest - len(row) for row in rows])
    return ids.to(device), (torch.arange(longest) - starts[:, None]).to(device)


def check(prompt: Prompt, number: int, model: QwenVL) -> None:
    """Raise ValueError for a prompt (`number` in its batch) that is empty, too long or does not fit its images."""
    config, limit = model.config, longest_row(model)
    if not prompt.ids:
        raise ValueError(f"prompt {number} is empty; give it one token at least.")
    if len(prompt.ids) >= limit:
        raise ValueError(
            f"prompt {number} has {len(prompt.ids)} tokens; this model reads at most {limit - 1}. "
            "Shorten the text or give fewer images."
        )
    if max(prompt.ids) >= config.llm.vocab_size or min(prompt.ids) < 0:
        raise ValueError(
            f"prompt {number} holds the id {max(prompt.ids)}; the model knows 0 to {config.llm.vocab_size - 1}. "
            "Use the tokenizer of this checkpoint."
        )
    slots, queries = prompt.ids.count(config.imgpad_id), config.adapter.queries
    if slots != queries * len(prompt.pixels):
        raise ValueError(
            f"prompt {number} has {slots} image placeholders but {len(prompt.pixels)} images; every image needs "
            f"{queries}. Build ids with markup.render()."
        )
    if prompt.digests and len(prompt.digests) != len(prompt.pixels):
        raise ValueError(
            f"prompt {number} has {len(prompt.digests)} digests of {len(prompt.pixels)} images; give one of each, or "
            "none."
        )
    for image in prompt.pixels:
        if image.ndim != 3 or image.shape != (3, *[config.vision.image_size] * 2):
            raise ValueError(
                f"prompt {number} has an image of shape {tuple(image.shape)}; expected "
                f"(3, {config.vision.image_size}, {config.vision.image_size}). Make it with images.preprocess()."
            )


def longest_row(model: QwenVL) -> int:
    """Tokens of prompt and answer together, at most."""
    return max(LONGEST_ROW, model.config.llm.sequence_length)


def device_of(model: QwenVL) -> torch.device:
    """Where the ids go."""
    return model.llm.embed.weight.device
