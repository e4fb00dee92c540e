"""The whole model (paper 2.1, Figure 3): images and ids in, logits out.

Where a row holds `<imgpad>`, the word embedding is overwritten by a visual token; everything else is language
modelling. The model never opens a file and never sees a path.
"""

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qwenvl.config import ModelConfig
from qwenvl.model.adapter import Adapter
from qwenvl.model.cached_rows import Chunk
from qwenvl.model.llm import LLM
from qwenvl.model.vision import VisionTransformer


class ForwardKwargs(TypedDict, total=False):
    """How rows of ids are read; whatever is left out is None."""

    positions: Int[Tensor, "batch tokens"] | None
    """Place of each token in its document; None: 0, 1, 2 ... behind the cache."""
    segments: Int[Tensor, "batch keys"] | None
    """Who sees whom: document * 1024 + branch, 0 = padding; of all tokens, those in the cache first. None: a row is
    one document."""
    cache: Chunk | None
    """Remembers these tokens, and lets them see those of earlier calls (`cached_rows.new_rows`)."""
    long_context: Float[Tensor, " batch"] | None
    """Each row's `ntk_alpha` at prefill, which turns on log-n scaling too; None: the arithmetic of training."""


class QwenVL(nn.Module):
    """Vision encoder, adapter and language model; its three children are exactly the parts that stages freeze."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.adapter = Adapter(config.adapter, config.vision.width, config.llm.hidden)
        self.llm = LLM(config.llm)

    def forward(
        self,
        ids: Int[Tensor, "batch tokens"],
        pixels: Float[Tensor, "images 3 side side"] | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Logits of the next token at every position.

        `pixels` are the images in row-major order of their slots. Raises ValueError when slots and images do not
        match.
        """
        return self.llm.head(self.hidden(ids, pixels, **kwargs))

    def hidden(
        self,
        ids: Int[Tensor, "batch tokens"],
        pixels: Float[Tensor, "images 3 side side"] | None = None,
        *,
        heard: Callable[[Float[Tensor, "images queries hidden"]], Float[Tensor, "images queries hidden"]]
        | None = None,
        idle: Float[Tensor, "_ 3 side side"] | None = None,
        residual: torch.dtype | None = None,
        only: Int[Tensor, " wanted"] | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Float[Tensor, "*wanted hidden"]:
        """Everything before the head, for callers that need the logits of a few positions only.

        `only`: of these tokens alone, counted through all rows (`LLM.forward`).
        `heard`: what the language model is given of the visual tokens; left out, these as they are.
        `idle` images stand nowhere and change nothing: a process without images walks the ViT beside processes
        that have some, forward and backward, because together they hold its weights. What the blocks add to is kept in
        the precision `residual`, None: in that of the embedding and of the ViT's positions.
        """
        hidden = self.llm.embed(ids).to(residual)  # (batch, tokens, hidden)
        if idle is not None:
            hidden = hidden + 0.0 * self.encode(idle, residual).sum().to(residual)
        slots = ids == self.config.imgpad_id
        visual = None if pixels is None else self.encode(pixels, residual)
        if visual is not None and heard is not None:
            visual = heard(visual)
        hidden = place_images(hidden, slots, visual, self.config.adapter.queries)
        return self.llm(hidden, only=only, **kwargs)

    def encode(
        self, pixels: Float[Tensor, "images 3 side side"], residual: torch.dtype | None = None
    ) -> Float[Tensor, "images queries hidden"]:
        """Visual tokens of each image."""
        return self.adapter(self.vision(pixels.to(self.vision.position.dtype), residual))


def place_images(
    hidden: Float[Tensor, "batch tokens hidden"],
    slots: Bool[Tensor, "batch tokens"],
    visual: Float[Tensor, "images queries hidden"] | None,
    queries: int,
) -> Float[Tensor, "batch tokens hidden"]:
    """Overwrite the slots of the rows, in row-major order, by the visual tokens of the images in order.

    Nothing waits for the device, forward or backward: how many slots there are follows from the images, so that the
    places of the slots are the head of a stable sort. (The backward pass of `masked_scatter` counts them on the host.)
    """
    images = 0 if visual is None else visual.shape[0]
    _check_slots(slots, images, queries)
    if visual is None:
        return hidden
    behind = slots.flatten().logical_not().to(torch.uint8)
    places = behind.argsort(stable=True)[: images * queries]
    tokens = visual.flatten(0, 1).to(hidden.dtype)
    return hidden.flatten(0, 1).index_copy(0, places, tokens).view_as(hidden)


def _check_slots(slots: Bool[Tensor, "batch tokens"], images: int, queries: int) -> None:
    """Raise ValueError unless every image has its slots.

    In a traced graph and on a GPU, for which the host would have to wait, the check is an assertion in the place of its
    execution; whoever made the ids has counted them on the CPU before (`generate.prompts`, `train.objectives`).
    """
    if torch.compiler.is_compiling() or _runs_behind(slots.device):
        torch._assert_async(slots.sum().eq(images * queries), "image placeholders and images do not match")
        return
    require_slots(int(slots.sum()), images, queries)


def _runs_behind(device: torch.device) -> bool:
    """Whether the host does not wait for what it asks of this device."""
    return device.type == "cuda"


def require_slots(slots: int, images: int, queries: int) -> None:
    """Raise ValueError unless there are as many placeholders as the images need."""
    if slots != images * queries:
        raise ValueError(
            f"{slots} image placeholders in the ids but {images} images given; every image needs {queries} "
            "placeholders and one row of pixels. Build ids with markup.render()."
        )


def without_values(config: ModelConfig) -> QwenVL:
    """The model on the meta device: names, shapes and no memory."""
    with torch.device("meta"), _Undrawn():
        return QwenVL(config)


class _Undrawn(TorchFunctionMode):
    """First values are not drawn: for that torch would load its compiler on the meta device, 75 MB and a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "normal_":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
