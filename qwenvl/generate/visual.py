"""Visual tokens, each image encoded once and kept while there is room.

An image is known by a digest of all that decides about its visual tokens: its pixels as floats, byte for byte, their
type and shape; and of a salt, which keeps users apart. Entries are pinned while a request still needs them; of the
others the longest unused go first.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from qwenvl.generate.prompts import Prompt, device_of
from qwenvl.model.vision import interpolate_positions
from qwenvl.model.vlm import QwenVL

IMAGES_AT_ONCE = 4
"""Images that pass through the vision encoder together, to bound its memory and the time of a slice."""


Through = Callable[[nn.Module, Tensor], Tensor]
"""Runs a block of the vision encoder on patches."""


def digest(pixels: Float32[np.ndarray, "3 side side"]) -> bytes:
    """What an image is known by."""
    seen = sha256(f"{pixels.dtype.str} {pixels.shape} ".encode())
    seen.update(np.ascontiguousarray(pixels).data)
    return seen.digest()


def salted(name: bytes, salt: bytes) -> bytes:
    """What it is known by among requests of one salt: how fast an answer comes tells nothing across keys."""
    return sha256(f"{len(salt)} ".encode() + salt + name).digest()


class VisualCache:
    """Images and their visual tokens, at most `budget` bytes of them unless pinned ones need more."""

    LEAST = 4096
    """Multiplications from which torch gives a product in bfloat16 to oneDNN: with fewer, an image has other bits alone
    than beside others."""

    def __init__(self, model: QwenVL, budget: int, through: Through | None = None) -> None:
        """`through` runs a block of the vision encoder, compiled for example."""
        self._model, self._budget, self._through = model, budget, through
        self._visual: OrderedDict[bytes, Float[Tensor, "queries hidden"]] = OrderedDict()
        self._pins: Counter[bytes] = Counter()
        self.held_bytes = 0
        """Memory of all that is kept."""
        self.queries = self.hits = 0

    def __len__(self) -> int:
        return len(self._visual)

    def pin(self, keys: Iterable[bytes]) -> None:
        """These are needed from now on, whether they have been encoded or not."""
        for key in set(keys):
            self.queries += 1
            self.hits += key in self._visual
            self._pins[key] += 1
            if key in self._visual:
                self._visual.move_to_end(key)

    def unpin(self, keys: Iterable[bytes]) -> None:
        """These are needed by one request less."""
        for key in set(keys):
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]
        self._shrink()

    def lacks(self, keys: Iterable[bytes]) -> bool:
        """Whether one of these is not encoded yet."""
        return any(key not in self._visual for key in keys)

    def get(self, key: bytes) -> Float[Tensor, "queries hidden"]:
        """The visual tokens of an image that is encoded."""
        return self._visual[key]

    def see(
        self, images: Mapping[bytes, Float32[np.ndarray, "3 side side"]], at_once: int = IMAGES_AT_ONCE
    ) -> Iterator[None]:
        """Encode the first few of these that are not yet; block by block, so that others may work between."""
        missing = [key for key in images if key not in self._visual][: min(at_once, self._at_once)]
        pixels = torch.from_numpy(np.stack([images[key] for key in missing])).to(device_of(self._model))
        visual = None
        for visual in encode_in_slices(self._model, pixels, self._through):
            if visual is None:
                yield
        assert visual is not None
        for key, tokens in zip(missing, visual, strict=True):
            self._visual[key] = tokens.clone()  # its own memory, not the batch's
            self.held_bytes += tokens.nbytes
        self._shrink()

    @property
    def _at_once(self) -> int:
        """One, where the smallest product of a lone image goes another way than that of several."""
        config = self._model.config
        patches, hidden, queries = config.vision.patches, config.llm.hidden, config.adapter.queries
        smallest = min(config.vision.width * patches**2, hidden * queries * patches, queries * hidden**2)
        return IMAGES_AT_ONCE if smallest > self.LEAST else 1

    def _shrink(self) -> None:
        if self.held_bytes <= self._budget:
            return
        for key in [key for key in self._visual if key not in self._pins]:
            self.held_bytes -= self._visual.pop(key).nbytes
            if self.held_bytes <= self._budget:
                return


def encode_in_slices(
    model: QwenVL, pixels: Float[Tensor, "images 3 side side"], through: Through | None = None
) -> Iterator[Float[Tensor, "images queries hidden"] | None]:
    """What `QwenVL.encode` computes, with a None after each block and the visual tokens at last."""
    vision = model.vision
    patches = vision.patch_embed(pixels.to(vision.position.dtype)).flatten(2).transpose(1, 2)
    patches = vision.norm_pre(patches + interpolate_positions(vision.position, patches.shape[1]))
    for block in vision.blocks:
        yield None
        patches = block(patches) if through is None else through(block, patches)
    yield None
    yield model.adapter(patches)


def encode(
    model: QwenVL, prompts: Sequence[Prompt], through: Through | None = None
) -> list[Float[Tensor, "queries hidden"]]:
    """Visual tokens of all images of all prompts in order; each different image is encoded once."""
    cache = VisualCache(model, 2**62, through)
    images = [(digest(pixels), pixels) for prompt in prompts for pixels in prompt.pixels]
    while cache.lacks(key for key, _ in images):
        for _ in cache.see(dict(images)):
            pass
    return [cache.get(key) for key, _ in images]
