"""What the files and the columns of a sample are called, wherever it comes from: one table for cleaning and training.

tar         key.jpg, key.json, key.txt; where there is none of those, the one that ends so: key.input.jpg
row, line   columns by the names that collectors give them; an image as bytes, as {bytes, path}, or by its path
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

IMAGES = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
"""Suffixes of images."""

TEXTS = ("txt", "text", "caption")
"""Suffixes of files that hold a caption."""

MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8")
"""How a file of the usual formats begins."""

IMAGE_COLUMNS = ("image", "picture", "jpg", "jpeg", "png", "webp", "image_path", "file_name", "img_path")
IMAGES_COLUMNS = ("images", "pictures", "image_paths", "image_files")
TEXT_COLUMNS = ("text", "caption", "alt_text", "alt", "top_caption", "title")
TEXTS_COLUMNS = ("captions", "texts")
SCORE_COLUMNS = ("clip_score", "similarity", "clip_similarity", "clip_similarity_vitb32",
                 "clip_b32_similarity_score", "clip_l14_similarity_score", "clip_similarity_vitl14")  # fmt: skip
URL_COLUMNS = ("url", "image_url", "img_url")
KEY_COLUMNS = ("key", "id", "image_id", "uid", "sample_id", "hash")
DIALOGUE_COLUMNS = ("conversations", "messages", "texts")
NAMES_OF_TEXT = frozenset(
    (*TEXT_COLUMNS, *TEXTS_COLUMNS, *DIALOGUE_COLUMNS, *KEY_COLUMNS, *URL_COLUMNS, "question", "answer")
)
"""Columns that are text even where a file has them as bytes."""


class Parts(NamedTuple):
    """The suffixes of a sample's files by what they hold."""

    images: tuple[str, ...]
    columns: str | None
    text: str | None


@lru_cache(maxsize=256)
def parts_of(suffixes: tuple[str, ...]) -> Parts:
    """Which files of a tar's sample are its images, its columns and its text."""
    columns, texts = _ending_in(suffixes, ("json",)), _ending_in(suffixes, TEXTS)
    return Parts(
        images=_ending_in(suffixes, IMAGES),
        columns=columns[0] if len(columns) == 1 else None,
        text=texts[0] if texts and (len(texts) == 1 or texts[0] in TEXTS) else None,
    )


def _ending_in(suffixes: Collection[str], ends: Sequence[str]) -> tuple[str, ...]:
    whole = tuple(suffix for suffix in suffixes if suffix in ends)
    return whole or tuple(suffix for suffix in suffixes if suffix.rpartition(".")[2] in ends)


def image_of(value: Any) -> bytes | str | None:
    """The bytes or the path of an image in a cell: as it is, as Hugging Face's {bytes, path}, or alone in a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, bytes | str) and value else None


def text_of(value: Any) -> str | None:
    """What a person wrote into a cell: a text, or a finite number as its digits; None for what is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else str(value)


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing: None, no letter, or nothing but such, as Arrow fills in for missing keys."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, str | bytes) and not value)


def image_beside(columns: Mapping[str, Any], shard: Path) -> Path | None:
    """The image of a row of img2dataset's `00000.parquet` that lies in the folder `00000` (`--output_format files`)."""
    key = columns.get("key")
    if not isinstance(key, str) or not key.isalnum() or not (folder := shard.with_suffix("")).is_dir():
        return None
    return next((path for end in IMAGES if (path := folder / f"{key}.{end}").is_file()), None)


def failed_download(columns: Mapping[str, Any]) -> str | None:
    """What img2dataset says of a row whose image it could not get."""
    status = columns.get("status")
    if not isinstance(status, str) or not status.startswith("failed"):
        return None
    return f"{status}: {columns.get('error_message')}"
