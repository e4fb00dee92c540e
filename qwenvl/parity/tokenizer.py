"""Fixtures of the official tokenizer and text functions (`tokenizer/*.json`), checked against ours.

Every case is checked twice: `qwenvl.parity.official`, told to trust the text, must give what was recorded; and what
users of this project meet (`Tokenizer`, `markup`) must give the same, or differ by exactly one of `text_cases.DEFECTS`.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qwenvl.parity import dialogue_cases, text_cases
from qwenvl.parity.certificate import NotHere, Result
from qwenvl.parity.text_cases import Case
from qwenvl.parsing import read_json
from qwenvl.tokenizer import VOCABULARY_FILE, Tokenizer

# === The kinds of files ===


@dataclass(frozen=True)
class Kind:
    """What the cases of a file hold."""

    check: Callable[[Case], None]
    required: frozenset[str]
    optional: frozenset[str]

    def fits(self, case: Mapping[str, Any]) -> bool:
        """Whether a case has the fields of this kind: all that are required, an outcome, and none that is unknown."""
        outcome = "ok" not in self.optional or not {"ok", "error"}.isdisjoint(case)
        return outcome and self.required <= set(case) <= self.required | self.optional


def _kind(check: Callable[[Case], None], required: str, optional: str = "") -> Kind:
    return Kind(check, frozenset(required.split()), frozenset(optional.split()))


KINDS: Mapping[str, Kind] = {
    "special": _kind(
        text_cases.special,
        "n_vocab n_ranks special_tokens",
        "eod_id im_start_id im_end_id img_start_id img_end_id img_pad_id image_special_tokens stop_words_chatml "
        "stop_words_raw vocab_sha256",
    ),
    "strings": _kind(
        text_cases.strings,
        "text encode_all",
        "encode_image_st encode_none decode decode_skip_special decode_skip_keep_image",
    ),
    "from_list_format": _kind(
        text_cases.from_list_format, "list_format", "text ids round_trip error message"
    ),
    "to_list_format": _kind(text_cases.to_list_format, "text", "ok error message"),
    "boxes": _kind(text_cases.boxes, "text", "ok error message"),
    "draw_boxes": _kind(text_cases.draw_boxes, "response history width height calls returned"),
    "latest_picture": _kind(text_cases.latest_image, "response history", "ok error message"),
    "make_context": _kind(
        dialogue_cases.make_context,
        "query history system max_window_size chat_format",
        "raw_text context_tokens error message",
    ),
    "decode_tokens": _kind(
        dialogue_cases.decode_tokens,
        "query history system chat_format generated",
        "response end_reason error message",
    ),
    "decode_ids": _kind(text_cases.decode_ids, "ids decode skip keep ignore"),
    "sft_preprocess": _kind(
        dialogue_cases.sft_preprocess,
        "conversations max_len",
        "input_ids labels attention_mask error message",
    ),
}


def recognises(data: Any) -> bool:
    """Whether the content of a JSON file is one of `KINDS`."""
    return _kind_of(data) is not None


def _kind_of(data: Any, name: str = "") -> str | None:
    """The kind whose required fields a file has; `name` decides where boxes and elements look alike (all errors)."""
    cases = [data] if isinstance(data, Mapping) else data
    if not isinstance(cases, list) or not all(isinstance(case, Mapping) for case in cases):
        return None
    found = {key for case in cases for key, kind in KINDS.items() if kind.fits(case)}
    if found == {"boxes", "to_list_format"}:
        values = [item for case in cases for item in case.get("ok", ()) if isinstance(item, Mapping)]
        lists = any(isinstance(value, str) for item in values if "ref" not in item for value in item.values())
        return "to_list_format" if lists or (not values and name == "to_list_format") else "boxes"
    return found.pop() if len(found) == 1 else None


def certify(path: Path, vocab: Path | None = None) -> Iterator[Result]:
    """One result per case of a file, or of every JSON file of a folder.

    The vocabulary is `vocab`, or `qwen.tiktoken` beside the fixtures, or that of the installed package dashscope. Where
    there is none, no case is run.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    vocabulary: Path | NotHere
    try:
        vocabulary = find_vocabulary(vocab or folder)
    except NotHere as missing:
        vocabulary = missing
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        yield from _certify_file(file, vocabulary)


def _certify_file(file: Path, vocabulary: Path | NotHere) -> Iterator[Result]:
    data = read_json(file, allow_halves=True)
    kind = _kind_of(data, file.stem)
    if kind is None:
        yield Result(
            f"tokenizer {file.stem}", "FAIL", None, None, "case not understood: unknown kind of file"
        )
        return
    for number, values in enumerate([data] if isinstance(data, Mapping) else data):
        name = f"tokenizer {kind} {number}"
        if isinstance(vocabulary, NotHere):
            yield Result(name, "NOT RUN", None, None, str(vocabulary))
            continue
        try:
            yield _certify_case(name, KINDS[kind], values, vocabulary)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            yield Result(name, "FAIL", None, None, f"case not understood: {type(error).__name__} {error}")


def _certify_case(name: str, kind: Kind, values: Mapping[str, Any], vocabulary: Path) -> Result:
    if not kind.fits(values):
        raise KeyError(
            f"fields {sorted(values)}, expected {sorted(kind.required)} and of {sorted(kind.optional)}"
        )
    case = Case(values, _load(vocabulary), vocabulary)
    kind.check(case)
    return case.result(name)


@lru_cache(maxsize=1)
def _load(vocabulary: Path) -> Tokenizer:
    return Tokenizer.load(vocabulary)


def find_vocabulary(place: Path | None = None) -> Path:
    """A vocabulary file: `place` itself or in it, else the official one of the package dashscope, not imported.

    Raises NotHere if there is none.
    """
    if place is not None and place.is_file():
        return place
    if place is not None and (place / VOCABULARY_FILE).is_file():
        return place / VOCABULARY_FILE
    package = importlib.util.find_spec("dashscope")
    for folder in package.submodule_search_locations or () if package else ():
        file = Path(folder) / "resources" / VOCABULARY_FILE
        if file.is_file():
            return file
    raise NotHere(
        f"the official {VOCABULARY_FILE} is not here; `pip install --no-deps dashscope` brings it, or put the file "
        "beside the fixtures."
    )
