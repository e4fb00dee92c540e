"""Naming drawings: what is read, that it is learned, that a run goes on, and where the ViT begins."""

import json
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from small_drawings import LETTERS, fetched, row, rows, small, stage

from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint.initialise import load_vision_
from qwenvl.cli import main
from qwenvl.data.drawings import streams
from qwenvl.data.drawings.labels import noun_number
from qwenvl.data.drawings.splits import nouns
from qwenvl.data.drawings.telling import said
from qwenvl.data.formats import Example
from qwenvl.data.stream.sources import Stream
from qwenvl.evaluation import card
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.loop import train
from qwenvl.train.naming import MISSING, Lesson, naming, read_namer


@pytest.fixture
def runtime() -> Runtime:
    return Runtime.detect(device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def two_drawings_make_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenvl.data.drawings.labels.LEAST", 2)


def test_names_are_learned(tmp_path: Path) -> None:
    objective = naming(small(), LETTERS, stage(fetched(tmp_path / "drawings")), run_dir=tmp_path)
    words = json.loads((tmp_path / "labels.json").read_text())
    assert {"cat", "animal", "vehicle"} <= set(words), "what noto and lucide both say"
    batch = objective.batch(range(8))
    assert {nouns()[number].noun for number in batch.nouns if number != MISSING} <= {
        "cat",
        "dog",
        "car",
        "bus",
        "key",
        "umbrella",
        "house",
    }
    entropy = -(batch.shares * np.log(np.where(batch.shares > 0, batch.shares, 1))).sum() / 8
    optimizer = torch.optim.AdamW(objective.module.parameters(), 3e-3)
    losses = []
    for _ in range(50):
        made = objective.loss(objective.placed(batch))
        assert made.supervised == made.images == 8
        losses.append({name: float(total) / count for name, (total, count) in made.by_source.items()})
        optimizer.zero_grad()
        made.total.backward()
        optimizer.step()
    first, last = losses[0], losses[-1]
    assert abs(first["nouns"] - np.log(len(nouns()))) < 0.3 > abs(first["words"] - np.log(len(words))), (
        "all alike"
    )
    assert last["nouns_wrong"] == 0 and last["nouns"] < 0.2 * first["nouns"]
    assert last["words"] - entropy < 0.25 * (first["words"] - entropy)


def test_three_drawings_of_four_are_of_a_noun_and_each_is_drawn_once_in_an_epoch(tmp_path: Path) -> None:
    place = row(fetched(tmp_path)).place(3)
    drawn = [streams.drawing_at(place, index) for index in range(56)]
    named = [each.name for each in drawn if noun_number(each) is not None]
    others = [each.name for each in drawn if noun_number(each) is None]
    assert len(named) == 42 and set(others) == {"noto/grinning-cat", "lucide/grinning-cat"}
    assert len(set(named[:14])) == 14 == len(set(named[14:28])), "seven nouns in two sets"


def test_images_grow_and_poses_too(tmp_path: Path) -> None:
    read = stage(fetched(tmp_path)).changed({"image_size": 56})
    lesson = Lesson(read.data[0].place(read.seed), read, 14)
    steps = (0, 14, 15, 22, 23, 29)
    sides = [lesson(range(8 * step, 8 * step + 4)).pixels.shape[-1] for step in steps]
    assert sides == [28, 28, 42, 42, 56, 56]
    first, last = lesson.image(0), lesson.image(8 * 29)
    assert (first[[0, -1]] == 255).all(axis=-1).any(), "on white"
    assert first.shape == (28, 28, 3) and last.shape == (56, 56, 3)
    assert np.array_equal(last, lesson.image(8 * 29)), "a function of the number"


def test_a_stopped_run_goes_on_with_the_same_weights_and_refuses_other_drawings(
    tmp_path: Path, runtime: Runtime
) -> None:
    folder = fetched(tmp_path / "drawings")
    one, two = small(), small()
    train(one, LETTERS, stage(folder, 12), tmp_path / "one", runtime)
    halfway = stage(folder, 12)

    class Killed(Exception):
        pass

    def kill(_model: QwenVL, _stage: object, step: int) -> None:
        if step == 10:
            raise Killed

    with pytest.raises(Killed):
        train(small(), LETTERS, halfway, tmp_path / "two", runtime, watch=kill)
    train(two, LETTERS, halfway, tmp_path / "two", runtime)
    for name, tensor in one.vision.state_dict().items():
        assert torch.equal(tensor, two.vision.state_dict()[name]), name
    fetched(folder, {"noto": rows()["noto"]})
    with pytest.raises(ValueError, match="shards differ from those the run began with"):
        train(small(), LETTERS, stage(folder, 12), tmp_path / "two", runtime)


def test_the_stage_is_judged_by_itself_beside_its_neighbours(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """benchmarks/namer.py: scores with intervals, and a page of right and wrong ones, from what the stage keeps."""
    folder, model, run = fetched(tmp_path / "drawings"), small(), tmp_path / "0-names"
    train(model, LETTERS, stage(folder, 30), run, runtime)
    with pytest.raises(ValueError, match=r"has no namer\.safetensors; give the folder of a stage of names"):
        read_namer(tmp_path)
    checkpoint.save(model, run / "model")
    (run / "stage.json").write_text(json.dumps({"image_size": 28}))
    program = run_path(str(Path(__file__).parents[2] / "benchmarks/namer.py"))
    program["main"]([str(run), "--data", str(folder), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    for size in (200, 747):
        assert f"among {size} nouns  accuracy" in said
        cards, records = card.read(tmp_path / f"out/drawings-{size}")
        notes = cards[0].score.notes
        assert {"nearest on RGB", "nearest on HOG", "blind", "blind, from", "blind, to"} <= notes.keys()
        right = [each["raw"] in each["truth"] or each["right"] for each in records]
        assert len(records) == cards[0].score.n and any(right), "drawings that it has nearly seen are named"
    page = (tmp_path / "out/report.html").read_text()
    assert "nearest on HOG" in page and 'class="right"' in page
    assert said.count("among the five likeliest, test-style") == 2


def test_a_stage_that_names_reads_one_row_of_drawings(tmp_path: Path) -> None:
    folder = fetched(tmp_path)
    other = stage(folder).changed({"data": [{"paths": ["toy:tasks"]}]})
    with pytest.raises(ValueError, match=r'reads one row, paths = \["drawings:names"\]'):
        naming(small(), LETTERS, other)


def test_drawings_without_a_common_word_are_refused(tmp_path: Path) -> None:
    made = {"noto": rows()["noto"]}
    with pytest.raises(ValueError, match="nothing to tell apart; fetch more sets"):
        naming(small(), LETTERS, stage(fetched(tmp_path, made)))


def test_no_drawing_that_is_held_out_is_ever_drawn(tmp_path: Path) -> None:
    folder = fetched(tmp_path)
    for licences, sets in (("permissive", {"noto", "lucide"}), ("any", {"noto", "lucide", "openmoji"})):
        place = row(folder, licences=licences).place(3)
        drawn = [streams.drawing_at(place, index) for index in range(128)]
        assert {each.source for each in drawn} == sets
        assert {each.name for each in drawn} == {each.name for each in streams.training(place)}


def test_documents_are_captions_and_answers_in_two_languages_and_a_function_of_their_number(
    tmp_path: Path,
) -> None:
    stream = Stream(sources=(row(fetched(tmp_path)),), tokenizer=LETTERS, queries=4, longest=200, seed=5)
    again = Stream(sources=stream.sources, tokenizer=LETTERS, queries=4, longest=200, seed=5)
    answers, asked = set(), set()
    for position in range(40):
        made, same = stream(position).made, again(position).made
        assert isinstance(made, Example) and isinstance(same, Example)
        assert made.ids == same.ids
        assert np.array_equal(np.asarray(made.images[0].source), np.asarray(same.images[0].source))
        answer = LETTERS.decode([label for label in made.labels if label >= 0])
        prompt = LETTERS.decode(made.ids)
        chinese = not answer.isascii()
        caption, question = ("in Chinese:", "这是什么？") if chinese else ("in English:", "What is this?")
        assert (caption in prompt) != (question in prompt)
        answers.add(answer.removesuffix("<|endoftext|>"))
        asked.add((chinese, question in prompt))
    assert {" car", " umbrella", "猫"} <= answers and len(asked) == 4


def test_dialogues_name_the_drawing_in_each_of_its_languages(tmp_path: Path) -> None:
    place = row(fetched(tmp_path)).place(5)
    for index in range(40):
        drawing = streams.drawing_at(place, index)
        text = LETTERS.decode(streams.talks_document(place, LETTERS, 4, index).ids)
        assert text.count("<img>") == text.count("What is this?") == text.count("这是什么？") == 1
        assert f"assistant\n{said(drawing.en)}<|im_end|>" in text
        assert f"assistant\n{drawing.zh}<|im_end|>" in text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"paths": ["drawings:nouns"]},
            "there is no source 'drawings:nouns'; expected one of drawings:lookups, drawings:image_lookups, ",
        ),
        ({"paths": ["toy:tasks"], "licences": "any"}, "licences of toy:tasks is 'any'"),
        ({"paths": ["drawings:names"], "licences": "all"}, "expected one of permissive, any"),
        ({"paths": ["drawings:names", "x.tar"]}, "says more than its weight"),
        ({"paths": ["toy:tasks"], "images": "."}, "the toy world no folder"),
    ],
)
def test_rows_that_cannot_be_meant(tmp_path: Path, values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        stage(fetched(tmp_path)).changed({"data": [values]})
    assert sentence in str(refused.value)


def test_a_folder_without_drawings_says_what_fills_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipes/drawings", "--out", "run"]) == 2
    said = capsys.readouterr().err
    assert "drawings holds no fetched drawings" in said and "qwenvl data fetch drawings" in said


def test_the_vision_encoder_begins_as_tinys_with_blocks_that_change_nothing_yet(tmp_path: Path) -> None:
    shallow, deep = small(2), small(3)
    checkpoint.save(shallow, tmp_path / "shallow")
    load_vision_(deep, tmp_path / "shallow")
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.equal(deep.vision(pixels), shallow.vision(pixels))
    with pytest.raises(ValueError, match="only blocks may be added"):
        load_vision_(small(1), tmp_path / "shallow")


def test_the_recipe_starts_from_tiny(tmp_path: Path) -> None:
    from qwenvl.train.recipe import Recipe, find_recipe
    from qwenvl.train.untrained import begin

    recipe = Recipe.read(find_recipe("drawings"))
    begin(recipe, tmp_path / "start")
    model = checkpoint.load(tmp_path / "start")
    tiny = checkpoint.load(checkpoint.resolve("tiny"))
    assert 5e6 < sum(each.numel() for each in model.parameters()) < 10e6
    ours, theirs = model.vision.state_dict(), tiny.vision.state_dict()
    assert torch.equal(ours["blocks.3.up.weight"], theirs["blocks.3.up.weight"])
    words = Tokenizer.load(tmp_path / "start")
    assert words.encode(" umbrella") and len(words.encode("自行车")) == 1
