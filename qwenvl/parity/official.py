"""The official text scheme, measured in `official.md` 4 to 7: tags inside a text become markup.

The rest of the project never does this (`qwenvl.tokenizer`, `qwenvl.markup`): here it stands for comparison, and
must only be given text that is trusted. Where the official code raises anything, these functions raise ValueError.

An image in official ids: `<img>`, the UTF-8 bytes of its path as ids 0..255, `<imgpad>` up to 256 slots, `</img>`.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qwenvl.markup import GRID, SYSTEM, Rendered, read_coordinates
from qwenvl.tokenizer import SPECIALS, Tokenizer

SLOTS = 256
IGNORE = -100
"""The label of what is not learned."""

IMAGE_TAGS = frozenset(SPECIALS[-9:])
"""`<ref>` to `<imgpad>`: what becomes markup in the content of a chat turn."""

History = Sequence[Sequence[str | None]]
"""Pairs of question and answer; the answer may be None."""


# === Ids ===


def composed(text: str) -> str:
    """NFC, in which every text is read; half of a surrogate pair becomes U+FFFD, as in tiktoken."""
    return unicodedata.normalize("NFC", text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode(text: str, tokenizer: Tokenizer, allowed: frozenset[str] = frozenset(SPECIALS)) -> list[int]:
    """Official ids of a text in which the `allowed` symbols are markup; without `allowed`, all of them are.

    Raises ValueError for an unclosed `<img>`, a symbol between `<img>` and `</img>`, a path over 256 bytes.
    """
    ids: list[int] = []
    parts = iter(_split(composed(text), allowed))
    for part in parts:
        if part == "<img>" and part in allowed:
            ids.extend(_image(_path(parts, allowed), tokenizer))
        elif part in allowed:
            ids.append(tokenizer.specials[part])
        else:
            ids.extend(tokenizer.encode(part))
    return ids


def _split(text: str, allowed: frozenset[str]) -> list[str]:
    if not allowed:
        return [text]
    symbols = "|".join(re.escape(symbol) for symbol in sorted(allowed))
    return [part for part in re.split(f"({symbols})", text) if part]


def _path(parts: Iterator[str], allowed: frozenset[str]) -> str:
    """What stands between `<img>` and `</img>`."""
    inner: list[str] = []
    for part in parts:
        if part == "</img>":
            if symbols := [piece for piece in inner if piece in allowed]:
                raise ValueError(f"{symbols[0]} stands inside <img>..</img>; expected a path or URL only.")
            return "".join(inner)
        inner.append(part)
    raise ValueError("Unclosed image token: <img> without </img>.")


def _image(path: str, tokenizer: Tokenizer) -> list[int]:
    name = composed(path).encode()
    if len(name) > SLOTS:
        raise ValueError(f"the path in <img>..</img> has {len(name)} bytes; expected at most {SLOTS}.")
    return [tokenizer.img, *name, *[tokenizer.imgpad] * (SLOTS - len(name)), tokenizer.img_end]


def official_ids(rendered: Rendered, tokenizer: Tokenizer) -> list[int]:
    """Our ids in the official scheme: the path of every image is written into its 256 slots.

    Raises ValueError for an image without a path or with another number of slots.
    """
    ids = list(rendered.ids)
    for start, image in zip(rendered.image_starts, rendered.images, strict=True):
        if not isinstance(image.source, str):
            raise ValueError(
                f"an image is {type(image.source).__name__}; the official scheme knows only paths."
            )
        if ids[start - 1 : start + SLOTS + 1] != _image("", tokenizer):
            raise ValueError(f"the image at {start} has not {SLOTS} slots; render with queries={SLOTS}.")
        ids[start - 1 : start + SLOTS + 1] = _image(image.source, tokenizer)
    return ids


def decode(
    ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    skip_special: bool = False,
    keep_image_special: bool = False,
    errors: str = "replace",
) -> str:
    """Text of official ids, paths written out; `skip_special` drops symbols, all or all but ref, box and quad.

    Raises ValueError for an unclosed `<img>`, a path not in UTF-8 or without a pad behind it, an unknown id.
    """
    kept = frozenset(range(tokenizer.ref, tokenizer.quad_end + 1)) if keep_image_special else frozenset()
    pieces: list[bytes] = []
    position = 0
    while position < len(ids):
        token = ids[position]
        position += 1
        if token < tokenizer.n_ranks or not skip_special or token in kept:
            if token >= tokenizer.n_vocab:
                raise ValueError(
                    f"id {token} cannot be decoded; the vocabulary ends at {tokenizer.n_vocab - 1}."
                )
            pieces.append(tokenizer.token_bytes(token))
        if token == tokenizer.img:
            end = _index(ids, tokenizer.img_end, position, "Unclosed image token: <img> without </img>.")
            pieces.append(_path_bytes(ids[position:end], tokenizer))
            position = end
    return b"".join(pieces).decode("utf-8", errors)


def _path_bytes(slots: Sequence[int], tokenizer: Tokenizer) -> bytes:
    pad = _index(slots, tokenizer.imgpad, 0, "no <imgpad> behind the path in <img>..</img>.")
    if wrong := [token for token in slots[:pad] if not 0 <= token < 256]:
        raise ValueError(f"id {wrong[0]} stands in the path of an image; expected bytes, 0 to 255.")
    name = bytes(slots[:pad])
    name.decode("utf-8")
    return name


def _index(ids: Sequence[int], token: int, start: int, missing: str) -> int:
    try:
        return ids.index(token, start)
    except ValueError:
        raise ValueError(missing) from None


# === Lists of elements, boxes, images ===


def from_list_format(elements: Iterable[Mapping[str, Any]]) -> str:
    """The text of a list of {"image"}, {"text"} or {"box", "ref"} elements; ValueError for any other."""
    text = ""
    images = 0
    for element in elements:
        if "image" in element:
            images += 1
            text += f"Picture {images}: <img>{_string(element, 'image')}</img>\n"
        elif "text" in element:
            text += _string(element, "text")
        elif "box" in element:
            text += f"<ref>{_string(element, 'ref')}</ref>" if "ref" in element else ""
            if not isinstance(element["box"], Sequence):
                raise ValueError(f"the boxes of an element are {element['box']!r}; expected a list.")
            text += "".join(_spell_box(box) for box in element["box"])
        else:
            raise ValueError(f"element {element!r} is unsupported; expected an image, a text or a box.")
    return text


def _string(element: Mapping[str, Any], key: str) -> str:
    if not isinstance(element[key], str):
        raise ValueError(f"the {key} of an element is {element[key]!r}; expected a string.")
    return element[key]


def _spell_box(box: Any) -> str:
    """The first four numbers, cut to integers."""
    corners = list(box[:4]) if isinstance(box, Sequence) else []
    if len(corners) < 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in corners):
        raise ValueError(f"box {box!r} is not four numbers; expected (x1, y1, x2, y2).")
    x1, y1, x2, y2 = map(int, corners)
    return f"<box>({x1},{y1}),({x2},{y2})</box>"


_ELEMENTS = {"<img>": "image", "<ref>": "ref", "<box>": "box", "<quad>": "quad"}


def to_list_format(text: str) -> list[dict[str, str]]:
    """The elements of a text, each {"text" | "image" | "ref" | "box" | "quad": str}.

    Raises ValueError for an unclosed tag, and for a control symbol that is neither a tag nor `<|endoftext|>`.
    """
    text = composed(text)
    for symbol in SPECIALS[1:-9]:
        if symbol in text:
            raise ValueError(f"the text spells the control symbol {symbol}; expected image tags only.")
    elements: list[dict[str, str]] = []
    position = 0
    for match in re.finditer("<(img|ref|box|quad)>", text):
        if match.start() < position:
            continue
        end = text.find(f"</{match[1]}>", match.end())
        if end < 0:
            raise ValueError(f"Unclosed image token: {match[0]} without </{match[1]}>.")
        plain = text[position : match.start()]
        elements.extend([{"text": plain}] if plain else [])
        elements.append({_ELEMENTS[match[0]]: text[match.end() : end]})
        position = end + len(match[0]) + 1
    return elements + ([{"text": text[position:]}] if text[position:] else [])


def boxes(text: str) -> list[dict[str, Any]]:
    """Every {"box": [x1, y1, x2, y2]} of a text, with "ref" if a phrase stands directly before it."""
    found: list[dict[str, Any]] = []
    before: Mapping[str, str] = {}
    for element in to_list_format(text):
        if "box" in element:
            values = read_coordinates(element["box"])
            if values is None or len(values) != 4:
                raise ValueError(f"<box>{element['box']}</box> is malformed; expected (x1,y1),(x2,y2).")
            found.append({"box": values, **({"ref": before["ref"].strip()} if "ref" in before else {})})
        before = element
    return found


def latest_image(response: str, history: History | None) -> str | None:
    """The path of the last image in the questions, or in `response` as if it were one."""
    for question, *_ in reversed([*(history or []), (response, None)]):
        for element in reversed(to_list_format(question or "")):
            if "image" in element:
                return element["image"]
    return None


def drawing(response: str, history: History | None, width: int, height: int) -> list[list[Any]] | None:
    """What is drawn on the latest image, in pixels: ["box", corners], ["text", phrase, corner]; None if nothing."""
    if latest_image(response, history) is None or not (found := boxes(response)):
        return None
    calls: list[list[Any]] = []
    for item in found:
        x1, y1, x2, y2 = item["box"]
        left, top = int(x1 / GRID * width), int(y1 / GRID * height)
        calls.append(["box", [left, top, int(x2 / GRID * width), int(y2 / GRID * height)]])
        if "ref" in item:
            calls.append(["text", item["ref"], [left, top]])
    return calls


# === Chat ===


def make_context(
    tokenizer: Tokenizer,
    query: str,
    history: History | None = None,
    system: str = "",
    max_window: int = 6144,
    chat_format: str = "chatml",
) -> tuple[str, list[int]]:
    """Prompt of a dialogue as text and as ids; exchanges are kept from the newest while they fit the window."""
    if chat_format == "raw":
        return query, encode(query, tokenizer)
    if chat_format != "chatml":
        raise ValueError(f"chat format {chat_format!r} is unknown; expected 'chatml' or 'raw'.")
    newline = tokenizer.encode("\n")
    system_text, system_ids = _turn("system", system, tokenizer)
    kept_text = ""
    kept: list[int] = []
    for question, answer in reversed(history or []):
        text, ids = _turn("user", question or "", tokenizer)
        answer_text, answer_ids = ("", []) if answer is None else _turn("assistant", answer, tokenizer)
        ids = newline + ids + newline + answer_ids
        if len(system_ids) + len(ids) + len(kept) >= max_window:
            break
        kept_text, kept = f"\n{text}\n{answer_text}{kept_text}", ids + kept
    query_text, query_ids = _turn("user", query, tokenizer)
    opening = [tokenizer.im_start, *tokenizer.encode("assistant"), *newline]
    return (
        f"{system_text}{kept_text}\n{query_text}\n<|im_start|>assistant\n",
        system_ids + kept + newline + query_ids + newline + opening,
    )


def _turn(role: str, content: str, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    head = [tokenizer.im_start, *tokenizer.encode(role), *tokenizer.encode("\n")]
    ids = [*head, *encode(content, tokenizer, IMAGE_TAGS), tokenizer.im_end]
    return f"<|im_start|>{role}\n{content}<|im_end|>", ids


def decode_tokens(
    tokenizer: Tokenizer,
    raw_text: str,
    context: Sequence[int],
    generated: Sequence[int],
    chat_format: str = "chatml",
) -> tuple[str, str]:
    """(reply, reason of its end). The prompt is cut off by its length in characters, and without a stop symbol the
    last generated token is dropped: both are defects (`official.md` 8.7), kept here to compare with."""
    ids = [*context, *generated]
    if chat_format == "raw":
        text = decode(ids, tokenizer)[len(raw_text) :]
        return text.replace("<|endoftext|>", "").strip(), f"Gen length {len(ids)}"
    if chat_format != "chatml":
        raise ValueError(f"chat format {chat_format!r} is unknown; expected 'chatml' or 'raw'.")
    stops = [
        place for place, token in enumerate(generated) if token in (tokenizer.im_start, tokenizer.im_end)
    ]
    end = len(context) + (stops[0] if stops else max(len(generated) - 1, 0))
    reason = f"Gen {decode([ids[end]], tokenizer)!r}" if stops else f"Gen length {len(ids)}"
    return decode(ids[:end], tokenizer)[len(raw_text) :].strip(), reason


def sft_preprocess(
    conversation: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    max_len: int | None,
    *,
    system: str = SYSTEM,
    allowed: frozenset[str] = frozenset(SPECIALS),
) -> tuple[list[int], list[int]]:
    """(ids, labels) of a dialogue for fine-tuning, padded and cut to `max_len`; None leaves the length as it is.

    Control symbols spelled in a `value` become control symbols, and the cut may go through an image (defect 11).
    """
    if not conversation:
        raise ValueError("the conversation has no turns; expected a question at least.")
    if unknown := [turn["from"] for turn in conversation if turn["from"] not in ("user", "assistant")]:
        raise ValueError(f"a turn is from {unknown[0]!r}; expected 'user' or 'assistant'.")
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    labels: list[int] = []
    turns = [("system", system), *((turn["from"], turn["value"]) for turn in conversation)]
    if turns[1][0] != "user":
        del turns[1]
    for role, value in turns:
        head = [*tokenizer.encode(role), *newline]
        content = encode(value, tokenizer, allowed)
        tail = [tokenizer.im_end, *newline]
        ids += [tokenizer.im_start, *head, *content, *tail]
        kept_labels = content if role == "assistant" else [IGNORE] * len(content)
        labels += [tokenizer.im_start, *[IGNORE] * len(head), *kept_labels, *tail]
    if max_len is None:
        return ids, labels
    missing = max_len - len(ids)
    ids = (ids + [tokenizer.endoftext] * missing)[:max_len]
    return ids, (labels + [IGNORE] * missing)[:max_len]
