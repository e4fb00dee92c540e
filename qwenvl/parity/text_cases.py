"""Checks of the recorded text functions: ids, lists of elements, boxes, images (`tokenizer` says what is checked)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenvl import markup
from qwenvl.markup import Box, Image, Ref, Text, Turn
from qwenvl.parity import official
from qwenvl.parity.certificate import Result
from qwenvl.tokenizer import Tokenizer

DEFECTS: Mapping[str, str] = {
    "path": "5: the path of an image in an answer is learned byte by byte; ours learns no image",
    "slice": "7: the prompt is cut off by its length before NFC, which takes the reply's first characters",
    "dropped": "7: without a stop symbol the last token is dropped",
    "reply raises": "8: one malformed symbol raises for the whole reply; ours answers",
    "box raises": "8: one malformed box or unclosed tag raises for the whole reply; ours keeps it as text",
    "injected": "11: text of the data becomes control tokens; ours keeps it as text",
    "cut": "11: the cut to max_len goes through an image; ours refuses a dialogue that is too long (data.packing)",
}
"""Notes of FIXED cases: the number in `official.md` section 8, and what was shown."""


class Case(dict[str, Any]):
    """A recorded case, and what was found out about it."""

    def __init__(self, values: Mapping[str, Any], tokenizer: Tokenizer, vocabulary: Path) -> None:
        super().__init__(values)
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.wrong: list[str] = []
        self.defects: list[str] = []
        self.notes: list[str] = []

    def equal(self, what: str, ours: object, recorded: object) -> bool:
        """Notes a difference; for ids, where it begins."""
        if ours != recorded:
            self.wrong.append(f"{what}: ours {_shortened(ours)}, official {_shortened(recorded)}")
        return ours == recorded

    def outcome(self, what: str, compute: Callable[[], object], recorded: Mapping[str, Any]) -> bool:
        """Compares with {"ok": value}, or {"error": type, ...}: where the official code raises, ValueError is right."""
        if set(recorded) - {"ok", "error", "message"} or ("ok" in recorded) == ("error" in recorded):
            raise KeyError(f"{what} is neither ok nor an error: {sorted(recorded)}")
        try:
            ours = compute()
        except ValueError as error:
            self.notes.append(f"both refuse: {_shortened(str(error))}")
            return "error" in recorded or self.equal(what, f"ValueError {error}", recorded["ok"])
        if "error" in recorded:
            return self.equal(what, ours, f"{recorded['error']} {recorded.get('message', '')}")
        return self.equal(what, ours, recorded["ok"])

    def result(self, name: str) -> Result:
        """FAIL beats FIXED beats PASS."""
        if self.wrong:
            return Result(name, "FAIL", None, None, "; ".join(self.wrong))
        if self.defects:
            return Result(name, "FIXED", None, None, "; ".join(DEFECTS[defect] for defect in self.defects))
        return Result(name, "PASS", None, None, "; ".join(dict.fromkeys(self.notes)))


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-37:]}"


# === Vocabulary, strings, ids ===


def special(case: Case) -> None:
    """Numbers of the vocabulary and its control symbols."""
    tokenizer = case.tokenizer
    named = {
        "n_vocab": tokenizer.n_vocab,
        "n_ranks": tokenizer.n_ranks,
        "special_tokens": dict(tokenizer.specials),
        "eod_id": tokenizer.endoftext,
        "im_start_id": tokenizer.im_start,
        "im_end_id": tokenizer.im_end,
        "img_start_id": tokenizer.img,
        "img_end_id": tokenizer.img_end,
        "img_pad_id": tokenizer.imgpad,
        "image_special_tokens": list(range(tokenizer.ref, tokenizer.quad_end + 1)),
        "stop_words_chatml": [[tokenizer.im_end], [tokenizer.im_start]],
        "stop_words_raw": [tokenizer.encode("Human:"), [tokenizer.endoftext]],
        "vocab_sha256": hashlib.sha256(case.vocabulary.read_bytes()).hexdigest(),
    }
    for key, recorded in case.items():
        case.equal(key, named[key], recorded)


def strings(case: Case) -> None:
    """Ids of a text under the three policies on tags, and the texts they decode to."""
    text, tokenizer = case["text"], case.tokenizer
    everything = case["encode_all"]
    image_tags, nothing = case.get("encode_image_st", everything), case.get("encode_none", everything)
    case.outcome("encode_all", lambda: official.encode(text, tokenizer), everything)
    case.outcome("encode_image_st", lambda: official.encode(text, tokenizer, official.IMAGE_TAGS), image_tags)
    case.outcome("encode_none", lambda: tokenizer.encode(text), nothing)
    case.equal("decode of ours", tokenizer.decode(tokenizer.encode(text)), official.composed(text))
    typed = typed_text(text, tokenizer)
    if typed is not None:
        rendered = markup.render(typed, tokenizer, official.SLOTS)
        case.equal("render", {"ok": official.official_ids(rendered, tokenizer)}, image_tags)
    if "ok" in everything:
        decode = case.get("decode", {"ok": text})
        skip = case.get("decode_skip_special", decode)
        keep = case.get("decode_skip_keep_image", skip)
        _decoded(case, everything["ok"], decode, skip, keep)


def decode_ids(case: Case) -> None:
    """Text of any ids, in the four ways of decoding."""
    ids, tokenizer = case["ids"], case.tokenizer
    _decoded(case, ids, case["decode"], case["skip"], case["keep"])
    case.outcome("ignore", lambda: official.decode(ids, tokenizer, errors="ignore"), case["ignore"])
    if "ok" in case["decode"] and tokenizer.img not in ids:
        case.outcome("Tokenizer.decode", lambda: tokenizer.decode(ids), case["decode"])
        case.outcome("Tokenizer.decode skip", lambda: tokenizer.decode(ids, skip_special=True), case["skip"])
        case.outcome(
            "Tokenizer.decode ignore", lambda: tokenizer.decode(ids, errors="ignore"), case["ignore"]
        )


def _decoded(case: Case, ids: Sequence[int], decode: Any, skip: Any, keep: Any) -> None:
    tokenizer = case.tokenizer
    case.outcome("decode", lambda: official.decode(ids, tokenizer), decode)
    case.outcome("decode skip", lambda: official.decode(ids, tokenizer, skip_special=True), skip)
    case.outcome(
        "decode keep",
        lambda: official.decode(ids, tokenizer, skip_special=True, keep_image_special=True),
        keep,
    )


def typed_text(text: str, tokenizer: Tokenizer) -> list[markup.Segment] | None:
    """The text as objects, where objects can say the same: not so for stray tags and unusual spellings of boxes."""
    try:
        segments = markup.parse_trusted(official.composed(text))
    except ValueError:
        return None
    words = [_path(part) if isinstance(part, Image) else markup.spell(part) for part in segments]
    inner = [_path(part) if isinstance(part, Image) else getattr(part, "text", "") for part in segments]
    stray = any(tag in piece for piece in inner for tag in official.IMAGE_TAGS)
    spelled = "".join(
        f"<img>{word}</img>" if isinstance(part, Image) else word
        for part, word in zip(segments, words, strict=True)
    )
    too_long = any(len(_path(part).encode()) > official.SLOTS for part in segments if isinstance(part, Image))
    return None if stray or too_long or spelled != official.composed(text) else segments


def _path(image: Image) -> str:
    assert isinstance(image.source, str)
    return image.source


# === Lists, boxes, images ===


def from_list_format(case: Case) -> None:
    """A list of elements as text and as ids, also as objects with numbered images."""
    tokenizer, elements = case.tokenizer, case["list_format"]
    recorded = {"ok": case["text"]} if "text" in case else recorded_error(case)
    written = case.outcome("text", lambda: official.from_list_format(elements), recorded)
    if not written or "text" not in case:
        return
    text = case["text"]
    case.outcome("ids", lambda: official.encode(text, tokenizer), case["ids"])
    case.outcome("round trip", lambda: official.to_list_format(text), case["round_trip"])
    if "ok" in case["ids"] and (objects := _objects(elements)) is not None:
        (turn,) = markup.number_images([Turn("user", objects)])
        rendered = markup.render(turn.content, tokenizer, official.SLOTS)
        tagged = official.encode(text, tokenizer, official.IMAGE_TAGS)  # control symbols in a text stay text
        case.equal("render", official.official_ids(rendered, tokenizer), tagged)


def _objects(elements: Sequence[Mapping[str, Any]]) -> tuple[markup.Segment | str, ...] | None:
    """The elements as objects; None if their texts spell tags or a box is off the grid."""
    objects: list[markup.Segment | str] = []
    for element in elements:
        if "image" in element:
            objects.append(Image(element["image"]))
            continue
        words = element["text"] if "text" in element else element.get("ref", "")
        if (
            any(tag in words for tag in official.IMAGE_TAGS) or words[:1] == "\u0338"
        ):  # ">" + U+0338 is one letter
            return None
        if "text" in element:
            objects.append(words)
            continue
        corners = [list(map(int, box[:4])) for box in element["box"]]
        if any(not 0 <= value < markup.GRID for box in corners for value in box):
            return None
        objects += [Ref(words)] if "ref" in element else []
        objects += [Box(x1, y1, x2, y2) for x1, y1, x2, y2 in corners]
    return tuple(objects)


def to_list_format(case: Case) -> None:
    """A text as a list of elements."""
    case.outcome("elements", lambda: official.to_list_format(case["text"]), _error_or_ok(case))


def boxes(case: Case) -> None:
    """The boxes of a reply with their phrases, also as `markup.parse` finds them."""
    text = case["text"]
    if not case.outcome("boxes", lambda: official.boxes(text), _error_or_ok(case)):
        return
    if "ok" in case:
        _reply_boxes(case, text, case["ok"])
    else:
        _refused_reply(case, text)


def _refused_reply(case: Case, reply: str) -> None:
    """The official code raised: for the sake of the reply, or of something else that ours refuses as well."""
    try:
        official.boxes(reply)
    except ValueError:
        case.equal("text of the reply", _words(markup.parse(reply)), _words([Text(reply)]))
        case.defects.append("box raises")


def _words(segments: Sequence[markup.Segment]) -> str:
    """The letters of a reply: `spell` may set punctuation and coordinates anew."""
    return "".join(character for character in markup.spell(segments) if character.isalpha())


def _reply_boxes(case: Case, reply: str, recorded: Sequence[Mapping[str, Any]]) -> None:
    """What our users get: the same boxes brought onto the grid, with the label for every box of a phrase."""
    found = [part for part in markup.parse(official.composed(reply)) if isinstance(part, Box)]
    ours = [[box.x1, box.y1, box.x2, box.y2] for box in found]
    on_grid = [[min(max(value, 0), markup.GRID - 1) for value in item["box"]] for item in recorded]
    if case.equal("parsed boxes", ours, on_grid):
        labels = [box.label if "ref" in item else None for box, item in zip(found, recorded, strict=True)]
        case.equal("labels", labels, [item.get("ref") for item in recorded])
    if on_grid != [list(item["box"]) for item in recorded]:
        case.notes.append("coordinates outside [0, 1000): read as they are, and on the border as Box")


def draw_boxes(case: Case) -> None:
    """What is drawn on the image, and where; `Box.to_pixels` names the same pixels."""
    response, width, height = case["response"], case["width"], case["height"]
    returned = case["returned"]
    if returned not in ("none", "image") and not isinstance(returned, Mapping):
        raise KeyError(f"returned is {returned!r}")
    calls = case["calls"] if returned == "image" else None
    recorded = {"ok": calls} if isinstance(returned, str) else returned
    history = case["history"]
    same = case.outcome("drawing", lambda: official.drawing(response, history, width, height), recorded)
    if same and "error" in recorded:
        _refused_reply(case, response)
    if not same or calls is None:
        return
    drawn = [corners for kind, corners, *_ in calls if kind == "box"]
    for box, corners in zip(official.boxes(response), drawn, strict=True):
        if all(0 <= value < markup.GRID for value in box["box"]):
            exact = Box(*box["box"]).to_pixels(width, height)
            below = [ours - pixel for ours, pixel in zip(exact, corners, strict=True)]
            case.equal("to_pixels, rounded down", min(below) > -1e-6 and max(below) < 1 + 1e-6, True)


def latest_image(case: Case) -> None:
    """The image that a reply is about."""
    case.outcome(
        "image", lambda: official.latest_image(case["response"], case["history"]), _error_or_ok(case)
    )


def recorded_error(case: Case) -> dict[str, Any]:
    """The recorded outcome of a case that raised."""
    return {key: case[key] for key in ("error", "message") if key in case}


def _error_or_ok(case: Case) -> dict[str, Any]:
    return {"ok": case["ok"]} if "ok" in case else recorded_error(case)
