"""Held-out drawings as benchmarks: what is asked, what counts as right, and what stands beside a score."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_drawings import fetched, rows

from qwenvl.cli import main
from qwenvl.data.datasets.sample import Sample, Source, name_of_option
from qwenvl.data.drawings.collection import Collection
from qwenvl.data.drawings.neighbours import BLIND, LOOKS, Neighbours
from qwenvl.data.drawings.splits import HELD_OUT_SETS, VOCABULARIES, noun, nouns
from qwenvl.evaluation.answering import _likeliest
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.naming import NAMES, NOUN, right
from qwenvl.evaluation.scoring import total
from qwenvl.images import open_image

ROWS = ("drawings", "drawings-zh", "drawings-200", "drawings-747", "drawings-grounding", "drawings-counting",
        "drawings-reading")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetched(tmp_path_factory.mktemp("drawings"))


def asked(name: str, folder: Path, limit: int | None = 12) -> list[Sample]:
    row = benchmark(name)
    return row.read(Source(folder, limit=limit, prompt_format="raw"))


def test_free_naming_asks_about_held_out_drawings_alone(folder: Path) -> None:
    for name, language in (("drawings", "en"), ("drawings-zh", "zh")):
        samples = asked(name, folder, None)
        assert samples and {each.id.split("/")[1] for each in samples} <= HELD_OUT_SETS
        cat = next(each for each in samples if each.id == "test-style/twemoji/cat")
        assert ("cat" if language == "en" else "猫") in cat.answers
        assert open_image(cat.images[0]).getpixel((0, 0)) == (255, 255, 255)  # type: ignore[arg-type]
        assert cat.beside.keys() == {*LOOKS, BLIND}


def test_among_nouns_every_noun_is_an_option_and_the_right_one_is_named(folder: Path) -> None:
    for size in VOCABULARIES:
        for sample in asked(f"drawings-{size}", folder):
            assert len(sample.options) == len(sample.letters) == size
            said = [sample.option(each).strip() for each in sample.answers]
            key = sample.id.rsplit("/", 1)[1]
            assert any(said_one in noun_named(key) for said_one in said)


def noun_named(key: str) -> tuple[str, ...]:
    return next(each.names("en") for each in nouns() if each.noun == key)


def test_a_noun_of_several_tokens_has_no_advantage() -> None:
    """By the mean of its tokens ` bicycle`, which nobody would say, would be likelier than ` cat`, which many would."""
    cat, bicycle = (-1.2, -0.1), (-2.0, -0.0, -0.0, -0.0)
    assert _likeliest([cat, bicycle], "AB").plain == "B"
    assert _likeliest([cat, bicycle], "AB", whole=True).plain == "A"
    assert [benchmark(name).whole for name in ("drawings-200", "drawings-747", "scienceqa", "toyworld-choice")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not benchmark("drawings").whole, "what is written freely is kept under the key that it had"


def test_options_beyond_the_letters_have_numbers() -> None:
    sample = Sample(id="a", options=tuple(f" {k}" for k in range(40)))
    assert (
        sample.letters[25:28] == ("Z", "27", "28")
        and sample.option("27") == " 26"
        and sample.option("B") == " 1"
    )
    assert name_of_option(746) == "747"


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("cat", 1),
        ("A cat.", 1),
        ("the cat", 1),
        ("It is a cat.", 1),
        ("cats", 0),
        ("a", 0),
        ("true cat", 1),
        ("", 0),
    ],
)
def test_any_accepted_name_is_right_with_its_article(said: str, value: int) -> None:
    sample = Sample(id="a", answers=noun_named("cat"))
    assert right(said, sample) == value


def test_chinese_names_are_right_as_they_are_said() -> None:
    assert (
        right("这是猫。", Sample(id="a", answers=("猫",)))
        == right("一只猫", Sample(id="a", answers=("猫",)))
        == 1
    )


def test_what_needs_no_model_stands_beside_with_intervals() -> None:
    beside = {"nearest on RGB": ("cat",), BLIND: ("dog",)}
    samples = [Sample(id=str(k), answers=("cat",), group=("x", "y")[k % 2], beside=beside) for k in range(20)]
    answers = ["cat"] * 5 + ["dog"] * 15
    assert NAMES.notes is not None
    notes = NAMES.notes(samples, answers)
    score = total(NAMES, samples, NAMES.score_items(samples, answers), notes=notes)
    assert score.value == 25 and score.low < 25 < score.high
    assert score.notes["nearest on RGB"] == 100 and score.notes["nearest on RGB, from"] == pytest.approx(
        83.9, abs=0.1
    )
    assert score.notes["answers, x"] == 30 and score.notes["answers, y, from"] == pytest.approx(5.7, abs=0.1)
    assert score.notes["blind, x"] == 0 and score.notes["blind, y, to"] == pytest.approx(27.8, abs=0.1)


def test_the_nearest_neighbour_of_a_training_drawing_is_itself(folder: Path) -> None:
    collection = Collection(folder)
    cat, key = (
        next(each for each in collection.drawings if each.name == f"noto/{name}") for name in ("cat", "key")
    )
    known = {each.noun: each.id for each in nouns()}
    among = Neighbours(folder, {known["cat"], known["key"], known["car"]})
    found = among.named([cat.image(), key.image()])
    for name in LOOKS:
        assert [noun(id).noun for id in found[name]] == ["cat", "key"]
    assert len(set(found[BLIND])) == 1


@pytest.mark.parametrize("kind", ["grounding", "counting", "reading"])
def test_scenes_hold_nothing_but_held_out_drawings_and_are_the_same_every_time(
    kind: str, folder: Path
) -> None:
    samples, again = asked(f"drawings-{kind}", folder, 6), asked(f"drawings-{kind}", folder, 6)
    assert [(each.id, each.text, each.images) for each in samples] == [
        (e.id, e.text, e.images) for e in again
    ]
    assert len(samples) == 6 and {each.group for each in samples} <= {"test-style", "test-medium"}
    assert all((each.box is not None) == (kind == "grounding") for each in samples)


def test_a_folder_without_what_is_held_out_says_so(tmp_path: Path) -> None:
    source = Source(fetched(tmp_path, {"noto": rows()["noto"]}), prompt_format="raw")
    for name in ROWS:
        with pytest.raises(ValueError, match=r"held.out"):
            benchmark(name).read(source)


@pytest.mark.parametrize("name", ["drawings", "drawings-200", "drawings-grounding"])
def test_a_model_is_asked_and_scored(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [
        "eval",
        "run",
        "tiny",
        name,
        "--data",
        str(folder),
        "--out",
        f"{tmp_path}/{name}",
        "--limit",
        "3",
        "--json",
    ]
    assert main(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["score"]["n"] == 3 and np.isfinite(said["score"]["value"])
    assert ("blind" in said["score"]["notes"]) == (name != "drawings-grounding")


def test_a_chosen_noun_is_right_by_every_name_it_has() -> None:
    sample = Sample(id="a", options=(" bicycle", " bike", " cat"), answers=("A", "B"))
    assert [each.value for each in NOUN.score_items([sample] * 3, ["A", "B", "C"])] == [1, 1, 0]
