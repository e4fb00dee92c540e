"""The official fine-tuning JSON: the ids and the mask of the official script, without its ways to lose a sample."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow

from qwenvl.data.conversations import read_conversations, samples
from qwenvl.data.faults import Unusable
from qwenvl.data.formats import IGNORE
from qwenvl.data.layouts import TrainingSample, read
from qwenvl.data.stream.samples import Sample
from qwenvl.markup import Box, Image, Ref, Text, Turn
from qwenvl.tokenizer import SPECIALS, Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "tokenizer" / "sft_preprocess.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    from qwenvl.parity.tokenizer import find_vocabulary

    return Tokenizer.load(find_vocabulary(GOLDEN / "tokenizer"))


def read_columns(columns: dict[str, Any]) -> TrainingSample:
    return read(Sample(where="", columns=columns, images={}, folder=Path()), strict=False)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_ids_and_labels_are_the_official_ones(number: int, official: Tokenizer) -> None:
    """Deliberate differences: control symbols in a value stay text, over-long rows are not cut, paths are no bytes.

    A leading answer, which the script drops, and a question without an answer are refused.
    """
    case = CASES[number]
    said = case["conversations"]
    if said[0]["from"] == "assistant" or len(said) == 1:
        with pytest.raises(Unusable, match=r"leading answer|nothing learned"):
            read_columns(case).example(official, 256)
        return
    values = "".join(each["value"] for each in said)
    ours = read_columns(case).example(official, 256)
    length = sum(case["attention_mask"])
    if any(name in values for name in SPECIALS[:3]):
        assert ours.ids.count(official.im_end) == len(said) + 1  # one per turn and the system's
        return
    assert len(ours) == length or (length == case["max_len"] and len(ours) > length)
    theirs, labels = case["input_ids"][:length], case["labels"][:length]
    shifted = [*labels[1:], IGNORE][: min(length, len(ours)) - (len(ours) > length)]
    assert list(ours.labels[: len(shifted)]) == shifted
    differing = [k for k in range(length) if ours.ids[k] != theirs[k]]
    assert all(ours.ids[k] == official.imgpad for k in differing), "only the bytes of paths differ"


def write(folder: Path, *values: tuple[str, str], lines: bool = False) -> Path:
    """A file of one sample per pair of question and answer."""
    found = [
        {"id": str(n), "conversations": [{"from": "user", "value": q}, {"from": "assistant", "value": a}]}
        for n, (q, a) in enumerate(values)
    ]
    file = folder / "my.json"
    file.write_text("\n".join(map(json.dumps, found)) if lines else json.dumps(found))
    return file


@pytest.mark.parametrize(("lines", "where"), [(False, "my.json:0 (id 0)"), (True, "my.json, line 1 (id 0)")])
def test_tags_become_objects_and_paths_start_at_the_file(tmp_path: Path, lines: bool, where: str) -> None:
    pillow.new("RGB", (8, 8)).save(tmp_path / "a.png")
    question = "Picture 1: <img>a.png</img>\nWhere is the cat?"
    file = write(tmp_path, (question, "<ref>the cat</ref><box>(1,2),(3,4)</box>"), lines=lines)
    (found,) = read_conversations(file)
    asked, answered = turns_of(found)
    assert asked.content == (Text("Picture 1: "), Image(tmp_path / "a.png"), Text("\nWhere is the cat?"))
    assert answered.content == (Ref("the cat"), Box(1, 2, 3, 4, label="the cat"))
    assert found.where == where and found.images == (Image(tmp_path / "a.png"),)


def turns_of(found: TrainingSample) -> tuple[Turn, ...]:
    assert hasattr(found.record, "turns")
    return found.record.turns


def test_control_symbols_in_a_value_are_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(GOLDEN / "models" / "tiny_q4")
    (found,) = read_conversations(write(tmp_path, ("a<|im_end|>", "<|im_start|>system")))
    ids = found.example(tokenizer, 4).ids
    assert ids.count(tokenizer.im_start) == ids.count(tokenizer.im_end) == 3


USER, ANSWER = {"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"x": "y"}, "form: no layout that is read has these keys: x"),
        ({"conversations": "no list"}, "form: `conversations` is not valid JSON"),
        ({"conversations": [{"from": "nobody", "value": "x"}]}, "form: a message is from 'nobody'"),
        ({"conversations": [{"from": 5, "value": "x"}]}, "form: a message is from 5"),
        ({"conversations": [{"from": "user", "value": None}]}, "form: a message of the user is a NoneType"),
        ({"conversations": [USER, USER]}, "form: message 1 is from the user; user and assistant take turns"),
        ({"conversations": [ANSWER]}, "leading answer: the first message is the assistant's"),
        ({"conversations": [{"from": "user", "value": "<box>(1,2)"}]}, "broken <box>"),
        (
            {"conversations": [{"from": "observation", "value": "x"}]},
            "unused content: .* tools have no place",
        ),
        ({"system": ["x"], "conversations": [USER, ANSWER]}, "form: the system message is a list"),
    ],
)
def test_a_sample_of_another_form_is_named(tmp_path: Path, sample: dict, message: str) -> None:
    file = tmp_path / "my.json"
    file.write_text(json.dumps([sample]))
    with pytest.raises(ValueError, match=message) as caught:
        read_conversations(file)
    assert "my.json:0" in str(caught.value) and "qwenvl data check" in str(caught.value)


def test_a_file_of_another_form_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json"):
        list(samples(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(ValueError, match="not valid JSON"):
        list(samples(tmp_path / "bad.json"))
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no sample"):
        read_conversations(tmp_path / "empty.json")
