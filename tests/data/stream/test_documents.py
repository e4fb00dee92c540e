"""Every kind of sample becomes the document it should, and every one that cannot says why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwenvl.data import layouts
from qwenvl.data.faults import Unusable
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import Located, Sample, read_sample

from .conftest import (
    BYTES,
    QUERIES,
    captions_parquet,
    dialogues_json,
    jpeg,
    mixed_records,
    pages_tar,
    pairs_tar,
    records_lines,
)


def document_of(sample: Sample, **options: Any) -> tuple[str, Example]:
    found = layouts.read(sample, **options)
    return found.format, found.example(BYTES, QUERIES)


def documents(shard: Path, **options: Any) -> list[tuple[str, Example]]:
    return [document_of(read_sample(shard, *place), **options) for place in sample_index(shard).tolist()]


def loss_mask(made: Example) -> str:
    return BYTES.decode([label for label in made.labels if label != IGNORE])


def prompt(made: Example) -> str:
    return BYTES.decode([token for token in made.ids if token < 256])


def test_pairs_are_captions_in_the_language_of_their_text(tmp_path: Path) -> None:
    english, chinese = documents(pairs_tar(tmp_path / "a.tar", ["a red dog", "一只狗"]))
    assert english[0] == "caption" and loss_mask(english[1]) == " a red dog<|endoftext|>"
    assert "in English:" in prompt(english[1]) and "in Chinese:" in prompt(chinese[1])
    image = english[1].images[0].source
    assert isinstance(image, Located) and image.read() == jpeg(0)


def test_pages_records_dialogues_and_rows(tmp_path: Path) -> None:
    task, page = documents(pages_tar(tmp_path / "p.tar", 2))[1]
    assert task == "ocr" and loss_mask(page).startswith("<ref> LINE 1</ref><quad>")
    lines = records_lines(tmp_path / "r.jsonl", mixed_records(tmp_path / "images", 2))
    message = documents(lines)
    assert [task for task, _ in message] == ["question"] * 2 + ["refer"] * 2 + ["text"] * 2
    assert (
        loss_mask(message[1][1]) == " it is 1<|endoftext|>"
        and message[1][1].images[0].source == tmp_path / "images/1.jpg"
    )
    assert loss_mask(message[4][1]) == "ords alone 0<|endoftext|>", "nothing predicts the first letter"
    task, dialogue = documents(dialogues_json(tmp_path / "d.json", 2))[1]
    assert task == "dialogue" and "第 1 个<|im_end|>" in loss_mask(dialogue)
    assert prompt(dialogue).count("Picture 1: ") == 1, "the file numbers its images itself"
    assert dialogue.images[0].source == tmp_path / "photos/1.jpg"
    task, row = documents(captions_parquet(tmp_path / "c.parquet", 3))[2]
    assert task == "caption" and loss_mask(row) == " row 2<|endoftext|>"


def test_a_mixture_line_says_its_format_and_a_row_can(tmp_path: Path) -> None:
    referring = mixed_records(tmp_path / "images", 1)[1:2]
    lines = records_lines(tmp_path / "r.jsonl", referring)
    assert documents(lines, format="describe")[0][0] == "describe"
    mixed = tmp_path / "m.jsonl"
    mixed.write_text('{"format":"describe","record":' + lines.read_text().strip() + "}\n")
    task, made = documents(mixed)[0]
    assert task == "describe" and loss_mask(made) == " thing 0<|endoftext|>"


def test_of_several_captions_one_is_told_in_each_epoch(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "c.jsonl").write_text('{"captions": ["one", "two"], "file_name": "a.jpg"}\n')
    message = [loss_mask(documents(tmp_path / "c.jsonl", epoch=epoch)[0][1]) for epoch in range(3)]
    assert message == [f" {word}<|endoftext|>" for word in ("one", "two", "one")]


CAPTION = {"kind": "caption", "image": "a.jpg", "text": "words"}
IMAGES = {"x.jpg": Located(Path("s.tar"), 0, 0, "x.jpg"), "y.jpg": Located(Path("s.tar"), 0, 0, "y.jpg")}


@pytest.mark.parametrize(
    ("columns", "images", "kind"),
    [
        (CAPTION, {}, "missing image"),
        (CAPTION, IMAGES, "missing image"),
        ({**CAPTION, "image": "https://x.org/a.jpg"}, {}, "image at a URL"),
        ({"text": "words", "url": "https://x.org/a.jpg"}, {}, "no image"),
        ({"text": "  "}, IMAGES, "empty caption"),
        ({"kind": "caption"}, {}, "broken record"),
        ({"conversations": [{"from": "user", "value": "<box>(1,2)</box>"}]}, {}, "broken markup"),
        ({"record": CAPTION, "format": "ocr"}, IMAGES, "broken record"),
        ({"kind": "text", "text": ""}, {}, "nothing learned"),
    ],
)
def test_what_cannot_be_used_says_why(
    columns: Mapping[str, Any], images: Mapping[str, Located], kind: str, tmp_path: Path
) -> None:
    if columns.get("format") == "ocr":
        images = {"a.jpg": IMAGES["x.jpg"]}
    sample = Sample(where="here", columns=columns, images=images, folder=tmp_path)
    with pytest.raises(Unusable) as caught:
        document_of(sample)
    assert caught.value.kind == kind


def test_the_one_image_of_a_sample_needs_no_name(tmp_path: Path) -> None:
    """img2dataset renames images to their key; the record still has the old name."""
    only = {"000.jpg": IMAGES["x.jpg"]}
    made = document_of(Sample(where="", columns=CAPTION, images=only, folder=tmp_path))[1]
    assert made.images[0].source is only["000.jpg"]
