"""Every output of the data engine is an evaluation (F-11)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenvl.cli import main
from qwenvl.data.datasets import own
from qwenvl.data.datasets.sample import Source
from qwenvl.data.records import (
    Caption,
    Dialogue,
    GroundedCaption,
    OcrPage,
    PlainText,
    Question,
    Record,
    Referring,
    to_json,
)
from qwenvl.data.synth.rawpairs import planted, write_raw
from qwenvl.evaluation.asking import Asker, Written
from qwenvl.evaluation.own import TASKS
from qwenvl.markup import Box, Image, Quad, Ref, Text, Turn, spell

PHOTO = Image("photo.png")
HALF, OTHER = Box(0, 0, 499, 999), Box(500, 0, 999, 999)
LINE = Quad(((10, 10), (400, 10), (400, 60), (10, 60)), label="Total 12")
RECORDS: tuple[Record, ...] = (
    Caption(image=PHOTO, text="a red dog runs over the hill"),
    Caption(image=PHOTO, text="two cats sleep under a green tree"),
    Question(image=PHOTO, question="What is red?", answer="a dog"),
    GroundedCaption(image=PHOTO, caption=(Ref("A dog"), HALF, Text(" and "), Ref("a cat"), OTHER)),
    Referring(image=PHOTO, phrase="the dogs", boxes=(HALF, OTHER)),
    OcrPage(image=PHOTO, lines=(LINE,)),
    PlainText(text="words alone"),
    Dialogue(
        turns=(
            Turn("user", (PHOTO, Text("What is this?"))),
            Turn("assistant", (Text("A dog."),)),
            Turn("user", (Text("Where?"),)),
            Turn("assistant", (Ref("the dog"), HALF)),
        ),
        system="You are brief.",
    ),
)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image as pillow

    monkeypatch.chdir(tmp_path)
    pillow.new("RGB", (40, 30), "red").save("photo.png")
    Path("records.jsonl").write_text("".join(f"{to_json(record)}\n" for record in RECORDS))
    return Path("records.jsonl")


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`oracle(data)`: whoever is asked about these samples answers what is expected."""

    ask = Asker.prompt

    def install(data: Path) -> None:
        truth = {
            sample.content: sample.answers[0]
            for samples in own.asked(Source(data)).by_task.values()
            for sample in samples
        }
        asked = {}

        def prompt(self: Asker, content: Any, **how: Any) -> Any:
            made = ask(self, content, **how)
            by_text = {spell(key): answer for key, answer in truth.items()}
            asked[made.ids, made.seed] = by_text[spell(content)].removeprefix("".join(how["open_with"]))
            return made

        def write_each(self: Asker, prompts: Any, decoding: Any, *, rows: int) -> Any:
            for place, each in enumerate(prompts):
                said = asked[each.ids, each.seed]
                yield [(place, Written(said, said, "stop"))]

        monkeypatch.setattr(Asker, "prompt", prompt)
        monkeypatch.setattr(Asker, "write_each", write_each)

    return install


def scores(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    printed = json.loads(capsys.readouterr().out)
    return {each["benchmark"].removeprefix("own-"): each for each in printed["tasks"]}


def scored(task: str, answers: list[dict[str, str]], capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """What `eval score` says of these answers to the records of a task."""
    Path("said.json").write_text(json.dumps(answers))
    given = ["--data", "records.jsonl", "--predictions", "said.json", "--json"]
    assert main(["eval", "score", f"own-{task}", *given]) == 0
    return json.loads(capsys.readouterr().out)["score"]


@pytest.mark.parametrize(
    "task", ["caption", "question", "grounded-caption", "refer", "ocr", "dialogue", "dialogue-boxes"]
)
def test_f11_each_task_of_records_has_a_score_that_a_right_answer_earns(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    asked = own.asked(Source(records)).by_task[task]
    answers = [{"id": sample.id, "answer": sample.answers[0]} for sample in asked]
    score = scored(task, answers, capsys)
    assert score["value"] == pytest.approx(1000 if task == "caption" else 100) and score["failures"] == 0


@pytest.mark.parametrize(
    ("task", "said", "value"),
    [
        ("refer", "<box>(0,0),(499,999)</box>", 50),  # one of two
        ("refer", "<box>(0,0),(9,9)</box><box>(0,0),(499,999)</box><box>(500,0),(999,999)</box>", 50),
        ("grounded-caption", "<ref>a pony</ref><box>(500,0),(999,999)</box>", 50),
        ("dialogue-boxes", "it is left", 0),
        ("ocr", "<ref> Total 13</ref><quad>(10,10),(400,10),(400,60),(10,60)</quad>", 100 * 7 / 8),
        ("question", "A DOG ", 100),
        ("question", "dog", 0),
    ],
)
def test_f11_what_a_partly_right_answer_earns(
    records: Path, capsys: pytest.CaptureFixture[str], task: str, said: str, value: float
) -> None:
    (sample,) = own.asked(Source(records)).by_task[task]
    assert scored(task, [{"id": sample.id, "answer": said}], capsys)["value"] == pytest.approx(value)


def test_f11_records_are_asked_as_they_are_trained(
    records: Path, capsys: pytest.CaptureFixture[str], model: Path, oracle: Callable[[Path], None]
) -> None:
    oracle(records)
    run = ["eval", "run", str(model), "records.jsonl", "--out", "run", "--json"]
    assert main(run) == 0
    found = scores(capsys)
    assert {*found} == {*TASKS} - {"describe"}
    assert {
        task: each["score"]["value"] for task, each in found.items() if task != "caption"
    } == dict.fromkeys({*found} - {"caption"}, 100)
    lines = [json.loads(line) for line in Path("run/dialogue-boxes/scored.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["Where?"]
    assert main(run) == 0  # everything is answered already
    assert scores(capsys)["refer"]["score"] == found["refer"]["score"]


def test_f11_a_question_of_a_dialogue_stands_behind_the_true_turns(records: Path, model: Path) -> None:
    from qwenvl.chat import Assistant

    (sample,) = own.asked(Source(records)).by_task["dialogue-boxes"]
    asker = Asker(Assistant.load(str(model)), "chatml")
    prompt = asker.prompt(sample.content, numbered=False, history=sample.history, system=sample.system)
    text = asker.assistant.tokenizer.decode(prompt.ids)
    assert "You are brief." in text and "Picture 1: " in text and text.index("A dog.") < text.index("Where?")
    assert len(prompt.pixels) == 1


def test_f11_what_has_no_expected_answer_is_counted_or_refused(
    records: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own.asked(Source(records)).left_out == {own.NO_ANSWER["text"]: 1}
    Path("texts.jsonl").write_text(to_json(PlainText(text="words")) + "\n")
    assert main(["eval", "run", str(model), "texts.jsonl"]) == 2
    assert "has an expected answer (a text alone asks nothing, 1 times)" in capsys.readouterr().err
    assert main(["eval", "run", str(model), "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl does not exist" in capsys.readouterr().err
    assert main(["eval", "run", str(model), "records.jsonl", "--data", "x"]) == 2
    assert "leave out --data" in capsys.readouterr().err
    Path("broken.jsonl").write_text('{"kind": "caption"}\n')
    assert main(["eval", "run", str(model), "broken.jsonl"]) == 2
    assert "qwenvl data check" in capsys.readouterr().err
    assert main(["eval", "run", str(model), "records.jsonl", "--prompt-format", "raw"]) == 2
    assert "is asked in ChatML" in capsys.readouterr().err


def test_f11_all_captions_of_an_image_are_references(records: Path) -> None:
    Path("many.jsonl").write_text(
        '{"image": "photo.png", "captions": ["a dog", "one red dog"]}\n'
        '{"image": "photo.png", "question": "What?", "answers": ["dog", "dog", "pup"]}\n'
    )
    found = own.asked(Source(Path("many.jsonl"))).by_task
    assert found["caption"][0].answers == ("a dog", "one red dog")
    assert found["question"][0].answers == ("dog", "dog", "pup")


def test_f11_outputs_of_synth_clean_mix_and_dialogues_are_evaluated(
    records: Path, model: Path, capsys: pytest.CaptureFixture[str], oracle: Callable[[Path], None]
) -> None:
    write_raw(planted(60), Path("raw"), shards=2, cut=False)
    assert main(["data", "clean", "raw", "clean", "--preset", "coyo"]) == 0
    assert (
        main(["data", "synth", "pages", "--count", "2", "--size", "200", "--chinese", "0", "--out", "pages"])
        == 0
    )
    assert main(["data", "dialogues", "localisation", "records.jsonl", "--out", "where.json"]) == 0
    assert (
        main(["data", "mix", "records.jsonl", "pages", "clean", "--out", "mix.jsonl", "--total", "20"]) == 0
    )
    wanted = {"clean": {"caption"}, "pages": {"ocr"}, "where.json": {"dialogue-boxes"}}
    capsys.readouterr()
    for name, tasks in wanted.items():
        oracle(Path(name))
        assert (
            main(["eval", "run", str(model), name, "--out", f"run-{name}", "--limit", "2", "--json"]) == 0
        ), name
        found = scores(capsys)
        assert tasks <= {*found} and all(each["score"]["n"] >= 1 for each in found.values()), name
    mixed = own.asked(Source(Path("mix.jsonl"))).by_task
    assert {*mixed} >= {"caption", "question", "ocr", "refer", "describe"}
