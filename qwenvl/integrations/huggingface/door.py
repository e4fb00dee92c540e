"""Greedy answers by transformers, for `qwenvl parity --through transformers`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

import qwenvl.integrations.transformers  # noqa: F401 - makes the model known
from qwenvl.generate.prompts import left_padded
from qwenvl.images import preprocess


@contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """`answers` of one model folder, in float32."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    size, end = model.config.shape.vision.image_size, model.config.endoftext

    def answers(prompts: Sequence[tuple[Sequence[int], Sequence[Path]]], new_tokens: int) -> list[Any]:
        """(ids, log-probabilities) for each (ids with placeholders, files of images), up to end-of-text."""
        ids, positions = left_padded([ids for ids, _ in prompts], model.device, fill=end)
        pixels = [preprocess(file, size) for _, files in prompts for file in files]
        written = model.generate(
            input_ids=ids,
            attention_mask=(positions >= 0).long(),
            pixel_values=torch.from_numpy(np.stack(pixels)) if pixels else None,
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=end,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logprobs = torch.stack(written.logits, dim=1).log_softmax(-1)  # (prompts, steps, vocab)
        rows = written.sequences[:, ids.shape[1] :]
        chosen = logprobs.gather(-1, rows[..., None])[..., 0]
        return [_until(row, own, end) for row, own in zip(rows.tolist(), chosen.tolist(), strict=True)]

    yield answers


def _until(ids: list[int], logprobs: list[float], end: int) -> tuple[list[int], list[float]]:
    length = ids.index(end) + 1 if end in ids else len(ids)
    return ids[:length], logprobs[:length]
