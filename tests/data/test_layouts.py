"""Today's layouts of training data are read, by one reader; what cannot be read that way is told, never passed over."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow

import qwenvl.cli as cli
from qwenvl.data.boxes import BadBox, from_tags
from qwenvl.data.check import check
from qwenvl.data.conversations import read_conversations, samples
from qwenvl.data.faults import Unusable
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.layouts import TrainingSample, read
from qwenvl.data.records import Question
from qwenvl.data.stream.samples import Sample
from qwenvl.data.stream.sources import SourceConfig, Stream
from qwenvl.data.tars import write_tar
from qwenvl.markup import Box, Image, spell
from qwenvl.tokenizer import Tokenizer

BYTES = Tokenizer({bytes([value]): value for value in range(256)})
HUMAN, GPT = {"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}
ASKED, ANSWERED = {"role": "user", "content": "<image>Colour?"}, {"role": "assistant", "content": "red"}
PARTS = [{"type": "image"}, {"type": "text", "text": "Colour?"}]
PLAIN = [{"from": "human", "value": "Colour?"}, GPT]
BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzI"
DIALOGUE = "Picture 1: <img></img>\nColour?|red"


def png(colour: str) -> bytes:
    file = io.BytesIO()
    pillow.new("RGB", (16, 12), colour).save(file, "PNG")
    return file.getvalue()


def description(found: TrainingSample) -> str:
    """Prompt and answer, or the turns, as text."""
    if found.turns:
        return "|".join(spell(turn.content) for turn in found.turns)
    return f"{found.format}: {getattr(found.record, 'question', '')}{getattr(found.record, 'text', '')}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    return tmp_path


def everyone(file: Path, longest: int = 2048) -> tuple[list[str], list[str], list[str]]:
    """What check, the reader of fine-tuning and the stream of training make of a file: one verdict."""
    checked = check(samples(file), BYTES, 4)
    stream = Stream(
        sources=(SourceConfig(paths=(str(file),)),), tokenizer=BYTES, queries=4, longest=longest, seed=0
    )
    made = [stream(number).made for number in range(checked.total)]
    usable = [each for each in made if isinstance(each, Example)]
    assert sorted(each.ids for each in usable) == sorted(
        each.example(BYTES, 4).ids for each in checked.usable
    )
    return (
        [description(each) for each in checked.usable],
        sorted(finding.kind for finding in checked.findings),
        sorted({each.kind for each in made if not isinstance(each, Example)}),
    )


READ: list[tuple[dict[str, Any], str]] = [
    ({"image": "red.png", "conversations": [HUMAN, GPT]}, DIALOGUE),
    ({"images": ["red.png"], "conversations": [HUMAN, GPT]}, DIALOGUE),
    ({"images": [{"path": "red.png", "bytes": None}], "conversations": [HUMAN, GPT]}, DIALOGUE),
    ({"image": "red.png", "conversations": json.dumps([HUMAN, GPT])}, DIALOGUE),
    ({"images": ["red.png"], "messages": [ASKED, ANSWERED]}, DIALOGUE),
    ({"images": ["red.png"], "messages": [{"role": "user", "content": "Colour?"}, ANSWERED]}, DIALOGUE),
    ({"images": ["red.png"], "messages": [{"role": "user", "content": PARTS}, ANSWERED]}, DIALOGUE),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "red.png", "url": None}, PARTS[1]]},
                ANSWERED,
            ]
        },
        DIALOGUE,
    ),
    ({"images": ["red.png"], "texts": [{"user": "Colour?", "assistant": "red"}]}, DIALOGUE),
    ({"image": "red.png", "query": "<image>Colour?", "response": "red"}, DIALOGUE),
    ({"messages": [{"role": "user", "content": [{"image": "red.png"}, {"text": "Colour?"}]}, ANSWERED]}, DIALOGUE),
    ({"image": "red.png", "image_name": "red.png", "conversations": [HUMAN, GPT]}, DIALOGUE),
    ({"images": [{"bytes": None, "path": None}], "query": "2 + 2?", "response": "4"}, "2 + 2?|4"),
    ({"query": "And?", "response": "no", "history": [["Is it?", "yes"]]}, "Is it?|yes|And?|no"),
    ({"instruction": "Add", "input": "1, 2", "output": "3"}, "Add\n1, 2|3"),
    ({"image": "red.png", "question": "Colour?", "answer": "red"}, "question: Colour?"),
    ({"image": "red.png", "question": "<image>\nColour?", "answers": ["red", "rot", "red"]}, "question: Colour?"),
    ({"question": "2 + 2?", "answer": "4"}, "2 + 2?|4"),
    ({"image": "red.png", "caption": "a red field"}, "caption: a red field"),
    (
        {"images": ["red.png", "blue.png"], "messages": [{**ASKED, "content": "<image>\n<image>\nWhich?"}, ANSWERED]},
        "Picture 1: <img></img>\nPicture 2: <img></img>\nWhich?|red",
    ),
    ({"image": "red.png", "question": "How many?", "answer": 2}, "question: How many?"),
    ({"image": "red.png", "question": "How many?", "answers": [None, 2, {"answer": None}]}, "question: How many?"),
    ({"image": "red.png", "conversations": [{"from": "human", "value": "<image>\r\nColour?"}, GPT]}, DIALOGUE),
    ({"image": "red.png", "conversations": [{"from": "human", "value": "Picture 1: <image>\nColour?"}, GPT]}, DIALOGUE),
    ({"images": ["red.png"], "prompt": [{"role": "user", "content": PARTS}], "completion": [ANSWERED]}, DIALOGUE),
    (
        {"image": "red.png", "conversations": [{"from": "human", "value": "Colour?\n<image>"}, GPT]},
        "Colour?\nPicture 1: <img></img>\n|red",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "expected"), READ)
def test_f60_todays_layouts_are_read(folder: Path, sample: dict[str, Any], expected: str) -> None:
    (folder / "a.json").write_text(json.dumps([sample]))
    assert everyone(folder / "a.json") == ([expected], [], [])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"images": ["red.png", "blue.png"], "conversations": [HUMAN, GPT]}, "image count"),
    ({"conversations": [HUMAN, GPT]}, "image count"),
    ({"image": "red.png", "conversations": [{"from": "human", "value": "Colour?"}, GPT]}, "image count"),
    ({"image": "red.png", "conversations": [{"from": "user", "value": "<img>blue.png</img>?"}, GPT]}, "image count"),
    ({"photo": "red.png", "conversations": [{"from": "human", "value": "Colour?"}, GPT]}, "image count"),
    ({"image": "nowhere.png", "conversations": [HUMAN, GPT]}, "missing image"),
    ({"images": ["red.png", "blue.png"], "text": "two"}, "image count"),
    ({"images": ["red.png"], "messages": [{"role": "user", "content": [*PARTS, PARTS[0]]}, ANSWERED]}, "image count"),
    ({"question": "<image>?", "answer": "red"}, "image count"),
    ({"video": "a.mp4", "messages": [{"role": "user", "content": "What?"}, ANSWERED]}, "unused content"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}, ANSWERED]}, "unused content"),
    ({"tools": "[x]", "conversations": [{"from": "user", "value": "a"}, GPT]}, "unused content"),
    ({"history": [["a", "b"]], "conversations": [{"from": "user", "value": "a"}, GPT]}, "unused content"),
    ({"conversations": [{"from": "user", "value": "a"}, {**GPT, "weight": 0.5}]}, "unused content"),
    ({"messages": [{"role": "user", "content": "a"}, {**ANSWERED, "tool_calls": [1]}]}, "unused content"),
    ({"question": "Which?", "answer": "B", "options": ["x", "y"]}, "unused content"),
    ({"messages": [{"role": "user", "content": 5}, ANSWERED]}, "form"),
    ({"messages": [5]}, "form"),
    ({"conversations": [["a", "b"]]}, "form"),
    ({"system": ["x"], "conversations": [{"from": "user", "value": "a"}, GPT]}, "form"),
    ({"image": "red.png", "caption": "a dog", "noun_chunks": [[0, 5, 0, 0, 1, 1, 1]]}, "unused content"),
    ({"image": 5, "conversations": PLAIN}, "image count"),
    ({"image": {"file_name": "red.png"}, "conversations": PLAIN}, "image count"),
    ({"filename": "red.png", "conversations": PLAIN}, "image count"),
    ({"media": [{"type": "image", "src": "red.png"}], "conversations": PLAIN}, "image count"),
    ({"image_base64": BASE64, "conversations": PLAIN}, "image count"),
    ({"image": BASE64, "conversations": [HUMAN, GPT]}, "image as base64"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?", "image": "red.png"}]}, ANSWERED]},
     "unused content"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": BASE64}}, PARTS[1]]}, ANSWERED],
      "images": ["red.png"]}, "image count"),
    ({"conversations": [{**PLAIN[0], "content": "Another?"}, GPT]}, "form"),
    ({"conversations": [{**PLAIN[0], "role": "assistant"}, GPT]}, "form"),
    ({"conversations": PLAIN, "messages": [ASKED, ANSWERED]}, "unused content"),
    ({"conversations": PLAIN, "system_prompt": "In French."}, "unused content"),
    ({"image": "red.png", "conversations": [{"from": "human", "value": "Picture 2: <image>"}, GPT]}, "image numbers"),
    ({"instruction": "Add", "input": ["1", "2"], "output": "3"}, "form"),
    ({"image": "red.png", "question": "Colour?", "answers": [{"text": "red"}, ["red"], True]}, "form"),
    ({"image": "red.png", "question": "How many?", "answer": math.nan}, "form"),
    ({"question": math.inf, "answer": "2"}, "form"),
    ({"image": "red.png", "caption": math.nan}, "empty caption"),
    ({"kind": "referring", "image": "red.png", "phrase": "it", "boxes": [[math.nan, 1, 2, 3]]}, "broken record"),
    ({"query": "Where is the cat</ref>?", "response": "there"}, "broken markup"),
    ({"query": "Where?", "response": "<ref>a <ref>cat</ref><box>(1,2),(3,4)</box>"}, "broken markup"),
    ({"query": "Where?", "response": "<ref>a cat<box>(1,2),(3,4)</box></ref>"}, "broken markup"),
    ({"instruction": "Add", "output": ""}, "nothing learned"),
    ({"conversations": []}, "nothing learned"),
    ({"image": "red.png", "question": "Colour?", "answers": []}, "nothing learned"),
    ({"conversations": [{"from": "user", "value": "<image 1>, <image 2>?"}, GPT]}, "image marks of another format"),
    ({"conversations": [{"from": "user", "value": "<IMAGE>?"}, GPT]}, "image marks of another format"),
    ({"query": "Where?", "response": "<p>it</p> {<10><20><30><40>}"}, "boxes of another format"),
    ({"query": "Where?", "response": '<point x="1" y="2">it</point>'}, "boxes of another format"),
    ({"query": "Where?", "response": "<ref>it</ref>[[1,2,3,4]]"}, "boxes of another format"),
    ({"query": "Where?", "response": "<BOX>(1,2),(3,4)</BOX>"}, "boxes of another format"),
    ({"query": "Where?", "response": "it [[012,345,678,900]]"}, "boxes of another format"),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "kind"), REFUSED)
def test_f60_f101_what_is_there_and_not_used_is_found(
    folder: Path, sample: dict[str, Any], kind: str
) -> None:
    (folder / "a.json").write_text(json.dumps([sample]))
    assert everyone(folder / "a.json") == ([], [kind], [kind])


def test_what_people_answered_is_learned_and_nothing_else(folder: Path) -> None:
    """Numbers are their digits; what is no answer never wins by being the most frequent."""
    given = [None, None, {"answer": 2}, True, True, ["x"], {"text": "y"}, math.nan, math.nan, math.inf]
    (folder / "a.json").write_text(json.dumps([{"image": "red.png", "question": "?", "answers": given}]))
    (found,) = read_conversations(folder / "a.json")
    assert isinstance(found.record, Question) and found.record.answer == "2"


def test_of_a_prompt_and_a_completion_the_completion_is_learned(folder: Path) -> None:
    """TRL's two lists of messages: the answers within the prompt are context."""
    prompt = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    (folder / "a.json").write_text(
        json.dumps([{"prompt": prompt, "completion": [{"role": "assistant", "content": "d"}]}])
    )
    (found,) = read_conversations(folder / "a.json")
    made = found.example(BYTES, 4)
    assert BYTES.decode([label for label in made.labels if label != IGNORE]) == (
        "<|im_end|>\n<|im_start|>d<|im_end|>\n"  # the first is that of the system message
    )


def test_numbers_of_thousands_of_digits_are_told(folder: Path) -> None:
    many = "9" * 5_000
    (folder / "a.json").write_text(
        json.dumps([{"query": f"Picture {many}: <img>red.png</img>", "response": "x"}])
    )
    assert check(samples(folder / "a.json"), BYTES, 4, 20_000).findings == ()
    with pytest.raises(BadBox, match="outside"):
        from_tags(f"<|box_start|>({many},1),(2,3)<|box_end|>")


def test_f61_parquet_of_the_hub_is_read(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    image = {"bytes": png("red"), "path": "red.png"}
    rows: dict[str, dict[str, Any]] = {
        "llava": {"image": image, "conversations": [HUMAN, GPT]},
        "cauldron": {"images": [image], "texts": [{"user": "Colour?", "assistant": "red"}]},
        "messages": {"images": [image], "messages": [ASKED, ANSWERED]},
        "questions": {"image": image, "question": "Colour?", "answer": "red"},
        "two": {"images": [image, image], "messages": [ASKED, ANSWERED]},
    }
    for name, row in rows.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 3), folder / f"{name}.parquet")
    for name in ("llava", "cauldron", "messages"):
        assert everyone(folder / f"{name}.parquet") == ([DIALOGUE] * 3, [], [])
    assert everyone(folder / "questions.parquet") == (["question: Colour?"] * 3, [], [])
    assert everyone(folder / "two.parquet") == ([], ["image count"], ["image count"])
    (first, *_) = read_conversations(folder / "cauldron.parquet")
    assert first.images[0].source.read() == png("red")  # type: ignore[attr-defined]


def test_f61_a_tar_of_images_and_dialogues_is_read(folder: Path) -> None:
    with write_tar(folder / "a.tar") as tar:
        for key, written in (
            ("0", {"image": "elsewhere/1.jpg", "conversations": [HUMAN, GPT]}),
            ("1", [HUMAN, GPT]),
            ("2", {"conversations": [{"from": "human", "value": "Colour?"}, GPT]}),
        ):
            tar.add(f"{key}.png", png("red"))
            tar.add(f"{key}.json", json.dumps(written).encode())
    assert everyone(folder / "a.tar") == ([DIALOGUE] * 2, ["image count"], ["image count"])


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_f65_lines_are_split_at_newlines_only(folder: Path, separator: str) -> None:
    lines = [{"query": f"a{separator}b", "response": "c"}, {"query": "d", "response": f"e{separator}"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "a.jsonl").write_text(f"\ufeff{text}\n", encoding="utf-8")
    assert everyone(folder / "a.jsonl")[0] == [f"a{separator}b|c", f"d|e{separator}"]


def test_f65_a_broken_line_is_named_by_its_number(folder: Path) -> None:
    good = json.dumps({"query": "a", "response": "b"})
    (folder / "a.jsonl").write_text(f'{good}\n\n{{"query": "a",}}\n{good}\n')
    (finding,) = check(samples(folder / "a.jsonl"), BYTES, 4).findings
    assert finding.kind == "broken JSON" and finding.example.startswith("a.jsonl, line 3: ")
    assert "line 1" not in finding.example
    (folder / "deep.jsonl").write_text("[" * 50_000 + f"\n{good}\n")
    assert everyone(folder / "deep.jsonl") == (["a|b"], ["broken JSON"], ["broken JSON"])


def test_a_key_that_stands_twice_with_two_values_is_broken(folder: Path) -> None:
    """JSON's readers keep the last: another image would be learned than the one that a person sees first."""
    asked = json.dumps({"image": "red.png", "conversations": [HUMAN, GPT]})
    lines = [
        asked,
        asked.replace("{", '{"image": "red.png", ', 1),
        asked.replace("{", '{"image": "blue.png", ', 1),
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    assert everyone(folder / "a.jsonl") == ([DIALOGUE] * 2, ["broken JSON"], ["broken JSON"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_f65_another_encoding_is_named(folder: Path, encoding: str) -> None:
    (folder / "a.json").write_bytes(json.dumps([{"query": "a", "response": "b"}]).encode(encoding))
    with pytest.raises(ValueError, match=r"looks like UTF-16 or UTF-32\); save it as UTF-8"):
        list(samples(folder / "a.json"))
    (folder / "a.jsonl").write_bytes(json.dumps({"query": "a", "response": "b"}).encode(encoding))
    assert everyone(folder / "a.jsonl")[1] == ["broken UTF-8"]


def test_f61_captions_of_parquet_are_text_even_as_bytes(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet as files

    for name, caption in (("good", b"a red field"), ("bad", b"\xff\xfe")):
        files.write_table(
            pyarrow.table({"image": [png("red")], "caption": [caption]}), folder / f"{name}.parquet"
        )
    assert everyone(folder / "good.parquet") == (["caption: a red field"], [], [])
    assert everyone(folder / "bad.parquet") == ([], ["broken UTF-8"], ["broken UTF-8"])
    cells = [pyarrow.array([each]) for each in (png("red"), "a red field", "a blue field")]
    twice = pyarrow.Table.from_arrays(cells, names=["image", "caption", "caption"])
    files.write_table(twice, folder / "twice.parquet")
    assert everyone(folder / "twice.parquet") == ([], ["damaged parquet"], ["damaged parquet"])


def test_f74_one_object_written_for_people_is_a_sample(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({"query": "a", "response": "b"}, indent=1))
    assert everyone(folder / "a.json") == (["a|b"], [], [])
    (folder / "cut.json").write_text(json.dumps([{"query": "a", "response": "b"}] * 2)[:-1])
    with pytest.raises(ValueError, match="ends otherwise than with a ]"):
        list(samples(folder / "cut.json"))


def labels(found: TrainingSample) -> str:
    return BYTES.decode([label for label in found.example(BYTES, 4).labels if label != IGNORE])


def test_f74_f101_system_and_turns_without_loss_are_used(folder: Path) -> None:
    """`system` as a key and as a turn; an answer with `"loss": false` or `"weight": 0` is seen and not learned."""
    turns: list[dict[str, Any]] = [
             {"from": "user", "value": "a"}, {"from": "gpt", "value": "FIRST", "loss": False},
             {"from": "user", "value": "b"}, {"from": "gpt", "value": "SECOND", "weight": 1}]  # fmt: skip
    for written in (
        {"system": "In French.", "conversations": turns},
        {"conversations": [{"from": "system", "value": "In French."}, *turns]},
    ):
        (folder / "a.json").write_text(json.dumps([written]))
        (found,) = read_conversations(folder / "a.json")
        ids = BYTES.decode(list(found.example(BYTES, 4).ids))
        assert "system\nIn French.<|im_end|>" in ids and "FIRST" in ids and "helpful" not in ids
        assert "SECOND" in labels(found) and "FIRST" not in labels(found)
    turns[1]["weight"] = turns[3]["weight"] = 0
    with pytest.raises(Unusable, match="nothing learned"):
        read(Sample(where="", columns={"conversations": turns}, images={}, folder=folder)).example(BYTES, 4)


def test_f101_keys_that_nothing_reads_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = {"id": 1, "difficulty": "hard", "query": "a\x1b[31m", "response": "b", "\x1b]0;x": 1}
    (folder / "a.json").write_text(json.dumps([sample] * 3))
    assert check(samples(folder / "a.json"), BYTES, 4).not_read == {"difficulty": 3, "\x1b]0;x": 3}
    assert cli.main(["data", "check", str(folder / "a.json")]) == 0
    shown = capsys.readouterr().out
    assert "not read: difficulty (3), \\x1b]0;x (3)" in shown and "\x1b" not in shown


def test_a_reader_of_boxes_sees_those_of_every_kind(folder: Path) -> None:
    lines = [
        {"kind": "referring", "image": "red.png", "phrase": "it", "boxes": [[1, 2, 3, 4]]},
        {"image": "red.png", "conversations": [HUMAN, {"from": "gpt", "value": "<box>(1,2),(3,4)</box>"}]},
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = check(samples(folder / "a.jsonl"), BYTES, 4)
    assert report.boxes == 2 and not report.findings
    assert Box(1, 2, 3, 4) in report.usable[1].turns[1].content
    assert [each.images for each in report.usable] == [(Image(folder / "red.png"),)] * 2


@pytest.mark.parametrize("text", ["Picture 1: ", "Look. Picture 2:", "Picture 1 :\n"])
def test_a_record_that_numbers_its_images_is_told(text: str) -> None:
    """It was numbered twice: "Picture 1: Picture 1: "."""
    turns = [
        {"role": "user", "content": f"{text}<img>a.jpg</img>What is it?"},
        {"role": "assistant", "content": "A cat."},
    ]
    columns = {"record": {"kind": "dialogue", "turns": turns}}
    with pytest.raises(Unusable, match=f"says '{text.strip().removeprefix('Look. ')}' before an image"):
        read(Sample(where="here", columns=columns, images={}, folder=Path()), strict=False)
    turns[0]["content"] = f"<img>a.jpg</img>{text}"
    assert read(Sample(where="here", columns=columns, images={}, folder=Path()), strict=False)
