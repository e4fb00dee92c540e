"""Prompts on their way to the model: checked, padded, their pictures encoded once and put in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from qwenvl.model.vlm import QwenVL, place_images

LONGEST_ROW = 32_768
"""Tokens of prompt and answer together, where the official table of log-n ends; more if training rows were longer."""

IMAGES_AT_ONCE = 16
"""Pictures that pass through the vision encoder together, to bound its memory."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row: ids as `markup.render` makes them, and the pixels of its pictures in order."""

    ids: tuple[int, ...]
    pixels: tuple[Float32[np.ndarray, "3 side side"], ...] = ()
    """As `images.preprocess` makes them. Prompts may share pictures: each is encoded once."""
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


def embed(
    model: QwenVL, ids: Int[Tensor, "batch tokens"], prompts: Iterable[Prompt]
) -> Float[Tensor, "batch tokens hidden"]:
    """Word embeddings with the pictures of the prompts in place; each different picture is encoded once."""
    hidden = model.llm.embed(ids)
    pixels = [image for prompt in prompts for image in prompt.pixels]
    if not pixels:
        return hidden
    # A shared array is read once: its id leads to the digest of its content, that to its place among the different.
    known: dict[int, bytes] = {}
    contents: dict[bytes, int] = {}
    for image in pixels:
        if id(image) not in known:
            known[id(image)] = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
    order = [contents.setdefault(known[id(image)], len(contents)) for image in pixels]
    different = [pixels[order.index(number)] for number in range(len(contents))]
    visual = torch.cat(
        [
            model.encode(torch.from_numpy(np.stack(different[at : at + IMAGES_AT_ONCE])).to(hidden.device))
            for at in range(0, len(different), IMAGES_AT_ONCE)
        ]
    )
    slots = ids == model.config.imgpad_id
    return place_images(hidden, slots, visual[order], model.config.adapter.queries)


def check(prompt: Prompt, number: int, model: QwenVL) -> None:
    """Raise ValueError for a prompt (`number` in its batch) that is empty, too long or does not fit its pictures."""
    config, limit = model.config, longest_row(model)
    if not prompt.ids:
        raise ValueError(f"prompt {number} is empty; give it one token at least.")
    if len(prompt.ids) >= limit:
        raise ValueError(
            f"prompt {number} has {len(prompt.ids)} tokens; this model reads at most {limit - 1}. "
            "Shorten the text or give fewer pictures."
        )
    if max(prompt.ids) >= config.llm.vocab_size or min(prompt.ids) < 0:
        raise ValueError(
            f"prompt {number} holds the id {max(prompt.ids)}; the model knows 0 to {config.llm.vocab_size - 1}. "
            "Use the tokenizer of this checkpoint."
        )
    slots, queries = prompt.ids.count(config.imgpad_id), config.adapter.queries
    if slots != queries * len(prompt.pixels):
        raise ValueError(
            f"prompt {number} has {slots} picture placeholders but {len(prompt.pixels)} pictures; every picture needs "
            f"{queries}. Build ids with markup.render()."
        )
    for image in prompt.pixels:
        if image.ndim != 3 or image.shape != (3, *[config.vision.image_size] * 2):
            raise ValueError(
                f"prompt {number} has a picture of shape {tuple(image.shape)}; expected "
                f"(3, {config.vision.image_size}, {config.vision.image_size}). Make it with images.preprocess()."
            )


def longest_row(model: QwenVL) -> int:
    """Tokens of prompt and answer together, at most."""
    return max(LONGEST_ROW, model.config.llm.sequence_length)


def device_of(model: QwenVL) -> torch.device:
    """Where the ids go."""
    return model.llm.embed.weight.device
