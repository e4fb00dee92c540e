"""CLIP scores of image-text pairs (Appendix A.1, rule 3), from any CLIP that transformers can load."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pillow

from qwenvl.data.clean.engine import Scorer, ScorerFactory
from qwenvl.data.records import Pair
from qwenvl.images import normalise, open_image


def scorer_of(checkpoint: str, device: str = "auto") -> ScorerFactory:
    """What makes the scorer where it is needed: `checkpoint` is a folder or a hub id, loaded by whoever scores.

    Raises ValueError for what is neither.
    """
    if not Path(checkpoint).is_dir() and checkpoint.count("/") != 1:
        raise ValueError(
            f"--clip {checkpoint} is no folder; give one, or a hub id such as openai/clip-vit-large-patch14."
        )
    return partial(load_scorer, checkpoint, device)


def load_scorer(checkpoint: str, device: str = "auto") -> Scorer:
    """Load the model and return the function that scores pairs: the cosine of image and text.

    Chinese sources want a CLIP that reads Chinese. Raises ValueError where transformers or the model is missing.
    """
    import torch

    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ValueError(
            "CLIP scores need transformers; pip install 'qwenvl[hf]' or give a score column."
        ) from None
    try:
        model = AutoModel.from_pretrained(checkpoint).eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"no CLIP model could be loaded from {checkpoint!r} ({reason}).") from None
    if not hasattr(model, "get_image_features"):
        raise ValueError(
            f"{checkpoint!r} is a {type(model).__name__}, not a CLIP: it has no get_image_features."
        )
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model.to(place)
    size = int(model.config.vision_config.image_size)
    longest = int(getattr(model.config.text_config, "max_position_embeddings", 77))

    def score(pairs: Sequence[Pair]) -> list[float]:
        pixels = np.stack([crop(pair.image or b"", size) for pair in pairs])
        texts = tokenizer(
            [pair.text for pair in pairs],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        with torch.inference_mode():
            images = _features(model.get_image_features(pixel_values=torch.from_numpy(pixels).to(place)))
            words = _features(model.get_text_features(**texts.to(place)))
        return torch.nn.functional.cosine_similarity(images.float(), words.float()).tolist()

    return score


def _features(found: Any) -> Any:
    """The embeddings: transformers 5 wraps them."""
    return getattr(found, "pooler_output", found)


def crop(image: bytes, size: int) -> np.ndarray:
    """CLIP's own preprocessing: the short side to `size`, bicubic, and the middle square of it."""
    shown = open_image(image)
    scale = size / min(shown.size)
    width, height = max(size, round(shown.width * scale)), max(size, round(shown.height * scale))
    resized = shown.resize((width, height), pillow.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return normalise(np.asarray(resized.crop((left, top, left + size, top + size))))
