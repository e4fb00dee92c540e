"""Messages of transformers to turns: `{"role", "content"}`, content a text or a list of parts."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from qwenvl.markup import SYSTEM, Box, Image, Quad, Ref, Turn, number_images, parse, segments_of

PLACE = Image(None)
"""A part `{"type": "image"}` without an image: its place, the image is given to the processor."""

ROLES = ("system", "user", "assistant")
SECONDS, MOST_BYTES = 20, 100_000_000


def turns_of(messages: Sequence[Mapping[str, Any]], *, chatml: bool) -> list[Turn]:
    """The turns of a dialogue, in ChatML with the system message and numbered images of the released chat model."""
    turns = [Turn(_role(message), tuple(_content(message))) for message in messages]
    if not chatml:
        return turns
    if not turns or turns[0].role != "system":
        turns = [Turn("system", (SYSTEM,)), *turns]
    return [turns[0], *number_images(turns[1:])]


def images_of(turns: Sequence[Turn]) -> list[Image]:
    """The images and places of a dialogue, in order."""
    return [part for turn in turns for part in turn.content if isinstance(part, Image)]


def image(value: Any) -> Image:
    """An image from what callers have: Pillow, array, tensor, bytes, path, URL, `{"bytes", "path"}` of datasets.

    A URL is fetched (https, http) or decoded (data:) and, like all the others, opened by `images.open_image` alone.
    """
    if isinstance(value, Image):
        return value
    if isinstance(value, Mapping):
        given = {key: each for key, each in value.items() if key in ("bytes", "path") and each is not None}
        if not given:
            raise ValueError(f"an image is a table with the keys {_keys(value)}; expected `bytes` or `path`.")
        return Image(given.get("bytes", given.get("path")))
    if isinstance(value, torch.Tensor):
        return Image(_array(value))
    if isinstance(value, str) and value[:8].lower().startswith(("http://", "https://", "data:")):
        return Image(_fetched(value))
    return Image(value)


def _role(message: Mapping[str, Any]) -> str:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        found = repr(message.get("role")) if isinstance(message, Mapping) else f"a {type(message).__name__}"
        raise ValueError(f"a message has the role {found}; expected one of {', '.join(ROLES)}.")
    return message["role"]


def _content(message: Mapping[str, Any]) -> list[Any]:
    unknown = sorted(key for key in message if key not in ("role", "content") and message[key] is not None)
    if unknown:
        raise ValueError(f"a message has the key {unknown[0]!r}; expected `role` and `content` alone.")
    content = message.get("content")
    if not isinstance(content, str | list | tuple):
        raise ValueError(
            f"the content of a message is {type(content).__name__}; expected a text or a list of parts."
        )
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return segments_of([segment for part in parts for segment in _part(part, message["role"])])


def _part(part: Any, role: str) -> list[Any]:
    if isinstance(part, Ref | Box | Quad | Image):  # objects of markup may stand among the parts
        return [part]
    if not isinstance(part, Mapping):
        raise ValueError(f"a message part is a {type(part).__name__}; expected a table with `type`.")
    given = {
        key: value for key, value in part.items() if value is not None
    }  # datasets store what is missing as null
    kind = given.pop("type", None)
    if kind == "text" and isinstance(given.get("text"), str):
        return list(parse(given["text"])) if role == "assistant" else [given["text"]]
    if kind in ("image", "image_url"):
        return [_image_part(kind, given)]
    raise ValueError(
        f"a message part has the type {kind!r} and the keys {_keys(given)}; expected type 'text' with `text`, or type "
        "'image' with `image`, `path`, `url` or `base64`, or with none of them where the image is given apart."
    )


def _image_part(kind: str, given: Mapping[str, Any]) -> Image:
    if "path" in given:
        return Image(given["path"])
    if "base64" in given:
        return Image(_decoded(given["base64"]))
    url = given.get("url", given.get("image_url"))
    url = url.get("url") if isinstance(url, Mapping) else url
    if url is not None:
        if not isinstance(url, str) or not url[:8].lower().startswith(("http://", "https://", "data:")):
            raise ValueError("an image's `url` is no http, https or data URL; give a file as `path`.")
        return Image(_fetched(url))
    if "image" in given:
        return image(given["image"])
    if kind == "image" and not given:
        return PLACE
    raise ValueError(
        f"an image part has the keys {_keys(given)}; expected `image`, `path`, `url` or `base64`."
    )


def _fetched(url: str) -> bytes:
    if url[:5].lower() == "data:":
        head, comma, body = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("an image's data URL is not base64; expected data:image/png;base64,...")
        return _decoded(body)
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=SECONDS) as answer:
            found = answer.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"the image at {url[:120]} could not be fetched ({error}); give it as bytes."
        ) from None
    if len(found) > MOST_BYTES:
        raise ValueError(
            f"the image at {url[:120]} is larger than {MOST_BYTES // 10**6} MB; make it smaller."
        )
    return found


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError("an image in base64 cannot be decoded; encode the bytes of its file.") from None


def _array(tensor: torch.Tensor) -> np.ndarray:
    levels = tensor.detach().cpu()
    if levels.is_floating_point():
        if levels.numel() and (levels.min() < 0 or levels.max() > 1):
            raise ValueError(
                "an image as a float tensor must be in [0, 1]; give uint8 levels, or bytes of a file."
            )
        levels = (levels * 255).round().to(torch.uint8)
    channels_first = levels.ndim == 3 and levels.shape[0] in (1, 3, 4) and levels.shape[2] not in (1, 3, 4)
    return (levels.permute(1, 2, 0) if channels_first else levels).contiguous().numpy()


def _keys(values: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, values))) or "none"
