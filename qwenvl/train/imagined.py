"""Scenes that the language model learns to look things up in before its eyes see them.

    what stands where in a scene -> what `align` asks of its visual tokens, and what eyes get wrong -> language model

Behind eyes that see little yet a language model learns what can be said without looking. What they will say is known:
`align` teaches it to them. So it learns behind that, before ViT and adapter or beside them: `imagined = true` of a
stage that points (docs/EXPERIMENTS.md, 2026-12-01).
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from qwenvl.data.drawings.streams import Composed
from qwenvl.markup import Image
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import on_device
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.alignment import LENGTH, Spoken, Where, covered
from qwenvl.train.stages import StageConfig

SCENES = (
    "drawn_captions", "scenes", "lone_scenes", "few_scenes", "boxed_scenes", "busy_scenes", "image_lookups"
)  # fmt: skip
"""Sources of drawings of whose images is known what stands where."""

MISTAKEN = 0.7
"""How much of another thing's word is said beside the right one, at most."""

BLURRED = 0.15
"""Deviation of what is said of a box, in each of the directions; a tenth of a side is 0.9 long (`alignment.NEAR`)."""

IDLE = 0.3
"""How long what is said is where nothing stands, in embeddings."""


class Imagined:
    """Visual tokens of scenes as they are to be, and as wrong as they may be: a pure function of what stands there."""

    def __init__(self, model: QwenVL, tokenizer: Tokenizer, stage: StageConfig) -> None:
        """Raises ValueError for a stage that reads no scenes."""
        read = {(row.world, row.made) for row in (*stage.data, *stage.curriculum.data)}
        if not read & {("drawings", made) for made in SCENES}:
            raise ValueError(
                f"stage {stage.name} imagines scenes of drawings and reads none; give it rows of paths = "
                f'["drawings:NAME"] with a NAME of {", ".join(SCENES)}, or leave imagined out.'
            )
        embed = model.llm.embed
        self.spoken, self.where = Spoken(tokenizer, embed), Where(embed)
        self.long = LENGTH * embed.weight.detach().norm(dim=1).mean()
        self.side = round(model.config.adapter.queries**0.5)

    def __call__(
        self, images: Sequence[Image], seen: Float[Tensor, "images queries hidden"]
    ) -> Float[Tensor, "images queries hidden"]:
        """What is heard of each image: of a scene what is imagined, of another what is seen."""
        heard = [
            self.of(image).to(each) if isinstance(image, Composed) else each
            for image, each in zip(images, seen, strict=True)
        ]
        return torch.stack(heard)

    @torch.no_grad()
    def of(self, image: Composed) -> Float[Tensor, "queries hidden"]:
        """What is imagined of a scene."""
        boxes = np.array([box for _, box in image.things], np.float32).reshape(-1, 4)
        noise = np.random.default_rng(zlib.crc32(boxes.tobytes()))
        things, (table, hidden) = len(boxes), self.spoken.table.shape
        idle = self._placed(noise.standard_normal((self.side**2, hidden)))
        idle = F.normalize(self.where.rest(idle), dim=-1) * (IDLE / LENGTH * self.long)
        if not things:
            return idle
        words = self.spoken([name for name, _ in image.things])
        others = F.normalize(self.spoken.table[self._placed(noise.integers(table, size=things))], dim=-1)
        said = words + self._placed(noise.uniform(0, MISTAKEN, (things, 1))) * others
        said = self.long * F.normalize(self.where.rest(said), dim=-1)
        codes = self.where.code(self._placed(boxes))
        codes = codes + BLURRED * self._placed(noise.standard_normal(codes.shape))
        standing = self._placed(np.stack([covered(box, self.side) for box in boxes]).astype(np.float32))
        many = standing.sum(dim=0)[:, None]  # things on each place
        return torch.where(
            many > 0, standing.T @ (said + codes @ self.where.directions) / many.clamp(min=1), idle
        )

    def _placed(self, values: NDArray[Any]) -> Tensor:
        found = torch.from_numpy(values)
        return on_device(found.float() if found.is_floating_point() else found, self.spoken.table.device)
