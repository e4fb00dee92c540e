"""Recorded answers of the official model: prompts, greedy decoding, batches, chat turns and streams, against ours."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenvl import markup
from qwenvl.parity.certificate import Result
from qwenvl.parity.fixture import Case, Fixture

# === Prompts ===


def checked_prompt(
    fixture: Fixture, case: Case, recorded: Sequence[int], keys: Sequence[str], prompt: str | None
) -> list[int]:
    """Our ids for a recorded row, after checking the paths in its slots and the ids of its text."""
    ids, paths = fixture.split_paths(recorded)
    case.equal("paths in the slots", paths, list(keys))
    if prompt is not None:
        rendered = markup.render(markup.parse_trusted(prompt), fixture.tokenizer, fixture.queries)
        case.equal("ids of the prompt", list(rendered.ids), ids)
        case.equal("pictures of the prompt", [image.source for image in rendered.images], list(keys))
    if "list_format" in case:
        turn = markup.Turn("user", tuple(_segments(case["list_format"])))
        (numbered,) = markup.number_pictures([turn])
        rendered = markup.render(numbered.content, fixture.tokenizer, fixture.queries)
        case.equal("ids of the list", list(rendered.ids), ids)
    return ids


def checked_batch(fixture: Fixture, case: Case) -> tuple[list[list[int]], Tensor]:
    """Our ids of padded rows and the mask (1 = token), after checking rows, paths and the side of the padding."""
    mask = torch.tensor(case["attention_mask"])
    tokens = mask.shape[1]
    rows = []
    for recorded, real, keys, prompt in zip(
        case["input_ids"], mask.tolist(), case["image_keys"], case.get("prompts", [None] * len(mask)), strict=True
    ):
        length = sum(real)
        start = tokens - length if case["padding_side"] == "left" else 0
        case.equal("padding side", real, [int(start <= place < start + length) for place in range(tokens)])
        ids = checked_prompt(fixture, case, recorded[start : start + length], keys, prompt)
        pad = fixture.tokenizer.endoftext
        padding = [*recorded[:start], *recorded[start + length :]]
        case.equal("padding", padding, [pad] * (tokens - length))
        rows.append([pad] * start + ids + [pad] * (tokens - start - length))
    return rows, mask


def _segments(elements: Sequence[Mapping[str, Any]]) -> Iterator[markup.Segment]:
    """An official list of {"image" | "text" | "box" (and "ref")} as objects; coordinates are cut to integers."""
    for element in elements:
        if "image" in element:
            yield markup.Image(element["image"])
        elif "text" in element:
            yield markup.Text(element["text"])
        elif "box" in element:
            if "ref" in element:
                yield markup.Ref(element["ref"])
            yield from (markup.Box(*map(int, box)) for box in element["box"])
        else:
            raise ValueError(f"unknown element {element!r}")


CHECKS: Mapping[str, Callable[[Fixture, Case], None]] = {}
DIALOGUES = frozenset({"chat"})


def certify_dialogue(name: str, kind: str, fixture: Fixture, values: Mapping[str, Any]) -> Iterator[Result]:
    yield Result(name, "FAIL", None, None, "TODO")


def certify_streams(fixture: Fixture, file: Path) -> Iterator[Result]:
    yield Result(f"{fixture.path.name} stream", "FAIL", None, None, "TODO")
