"""Images on their way into vLLM: pixels as everywhere in this project, and `<imgpad>` between `<img>` and `</img>`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image as pillow
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from qwenvl.config import ModelConfig
from qwenvl.images import preprocess
from qwenvl.integrations.huggingface.messages import image

PLACE = "<img></img>"


class ImageReader:
    """What vLLM calls as a processor of transformers; ids of a text are its own business."""

    def __init__(self, size: int, tokenizer: Any) -> None:
        self.size, self.tokenizer = size, tokenizer

    def __call__(
        self, text: str | None = None, images: Any = None, *, return_tensors: str = "pt", **options: Any
    ) -> BatchFeature:
        """`pixel_values` (images, 3, size, size). Raises ValueError for options, of which there are none."""
        if unknown := [name for name in options if name not in ("truncation", "add_special_tokens")]:
            raise ValueError(
                f"mm_processor_kwargs has {unknown[0]!r}; images are read in one way, leave it out."
            )
        found: dict[str, Any] = (
            {} if text is None else {"input_ids": torch.tensor([self.tokenizer.encode(text)])}
        )
        if images is not None and len(images):
            opened: list[Any] = [image(_media(each)).source for each in images]
            pixels = [preprocess(each, self.size, ground=self.tokenizer.ground) for each in opened]
            found["pixel_values"] = torch.from_numpy(np.stack(pixels))
        return BatchFeature(found)


class Info(BaseProcessingInfo):
    """What the model takes: any number of images."""

    @property
    def shape(self) -> ModelConfig:
        """The model's."""
        return self.get_hf_config().shape

    def get_hf_processor(self, **options: object) -> Any:
        """The reader of images."""
        return ImageReader(self.shape.vision.image_size, self.get_tokenizer())

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """As many images as the row has room for."""
        return {"image": None}


class DummyInputs(BaseDummyInputsBuilder[Info]):
    """Prompts of nothing but images, from which vLLM learns how much memory they take."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Their places."""
        return PLACE * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], *_: Any, **__: Any
    ) -> dict[str, Any]:
        """White squares."""
        size = self.info.shape.vision.image_size
        return {"image": [pillow.new("RGB", (size, size), "white")] * mm_counts.get("image", 0)}


class Processor(BaseMultiModalProcessor[Info]):
    """Puts the placeholders of each image into its place."""

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        return {"pixel_values": MultiModalFieldConfig.batched("image")}

    def _call_hf_processor(self, *given: Any, **named: Any) -> Any:
        """As inherited: older versions, told by its standing here, hand a text along, as they do in every other way."""
        return super()._call_hf_processor(*given, **named)

    def _hf_processor_applies_updates(self, *_: Any, **__: Any) -> bool:
        return False

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[Any]:
        place, shape = self._place(), self.info.shape
        filled = [place[0], *[shape.imgpad_id] * shape.adapter.queries, place[1]]
        details = PromptUpdateDetails.select_token_id(filled, shape.imgpad_id)
        return [PromptReplacement(modality="image", target=place, replacement=details)]

    def _apply_prompt_updates(self, token_ids: list[int], mm_prompt_updates: Any) -> Any:
        """Places are found by their ids alone: vLLM would else look in the text, where anyone can spell them."""
        images, start, end = len(mm_prompt_updates.get("image", ())), *self._place()
        places = sum(pair == (start, end) for pair in pairwise(token_ids))
        if places != images:
            raise ValueError(
                f"the prompt has {places} places for images ({PLACE}) but {images} images are given; give as many, in "
                "their order."
            )
        return super()._apply_prompt_updates(token_ids, mm_prompt_updates)

    def _place(self) -> list[int]:
        imgpad = self.info.shape.imgpad_id
        return [imgpad - 2, imgpad - 1]


def _media(given: Any) -> Any:
    """The image itself, where vLLM keeps it together with the bytes it came in."""
    return getattr(given, "media", given)
