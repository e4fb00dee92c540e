"""Whether two models say the same: logits of the supervised tokens of a few samples, before and after something."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl.data.conversations import example_of
from qwenvl.data.formats import IGNORE
from qwenvl.data.layouts import TrainingSample
from qwenvl.data.stream.images import square
from qwenvl.images import normalise
from qwenvl.model.vlm import QwenVL
from qwenvl.tokenizer import Tokenizer

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of two logits that count as equal, in standard deviations of the logits, by precision."""


def named(dtype: torch.dtype) -> str:
    """`float32` of torch.float32."""
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def supervised_logits(
    model: QwenVL, tokenizer: Tokenizer, samples: Sequence[TrainingSample], ground: Sequence[int] = ()
) -> list[Float[Tensor, "_ vocab"]]:
    """Logits that predict the supervised tokens of each sample, float32 on the CPU; the model is left in evaluation.

    `ground` is that of the stage.
    """
    model.eval()
    device, logits = model.llm.embed.weight.device, []
    for sample in samples:
        shown = example_of(sample, tokenizer, model.config.adapter.queries)
        size = model.config.vision.image_size
        pixels = [normalise(square(image.source, size, ground=ground)) for image in shown.images]
        hidden = model.hidden(
            torch.tensor([shown.ids], device=device),
            torch.from_numpy(np.stack(pixels)).to(device) if pixels else None,
        )
        supervised = [index for index, label in enumerate(shown.labels) if label != IGNORE]
        logits.append(model.llm.head(hidden[0, supervised]).float().cpu())
    return logits


def difference(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    """Largest difference of two lists of logits, in standard deviations of the first; NaN where one is no number."""
    return float(
        torch.stack([(a - b).abs().max() / a.std() for a, b in zip(these, those, strict=True)]).max()
    )
