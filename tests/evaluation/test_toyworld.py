"""The toy world as a benchmark: its answer key is right by its own rules, and it can be asked of a model."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

import qwenvl.cli as cli
from qwenvl.data.toy.items import Item, items
from qwenvl.data.toy.worlds import holds_held_out, scene
from qwenvl.evaluation import card
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.metrics.toy import GROUPS, Blind, Count, counts
from qwenvl.markup import Box, Ref, parse, spell

IMAGES = 80


def asked(prompt_format: str) -> list[Item]:
    return [item for k in range(IMAGES) for item in items(scene(1, k, "test"), k, 1, prompt_format)]


@pytest.mark.parametrize("prompt_format", ["raw", "chatml"])
def test_the_answer_key_is_right_however_it_is_spelled(prompt_format: str) -> None:
    for item in asked(prompt_format):
        found = counts(item.kind, item.answer, parse(spell(item.answer).strip()))
        assert found and all(count.correct == count.n > 0 for count in found.values()), item


@pytest.mark.parametrize("prompt_format", ["raw", "chatml"])
def test_an_empty_answer_is_wrong_everywhere(prompt_format: str) -> None:
    for item in asked(prompt_format):
        assert all(count.correct == 0 < count.n for count in counts(item.kind, item.answer, []).values()), (
            item
        )


def test_every_group_is_asked_in_both_manners_and_only_about_held_out_images() -> None:
    for prompt_format in ("raw", "chatml"):
        kinds = {name for item in asked(prompt_format) for name in counts(item.kind, item.answer, [])}
        for members in GROUPS.values():
            assert set(members) <= kinds
        assert all(holds_held_out(item.scenes[0]) for item in asked(prompt_format))


def test_boxes_of_a_grounded_caption_count_one_by_one_under_their_phrase() -> None:
    item = next(
        item for item in asked("raw") if item.kind == "grounded_caption" and len(item.scenes[0].items) > 1
    )
    phrase, box = next(
        (a, b) for a, b in zip(item.answer, item.answer[1:], strict=False) if isinstance(b, Box)
    )
    assert isinstance(phrase, Ref)
    boxes = sum(isinstance(segment, Box) for segment in item.answer)
    assert counts(item.kind, item.answer, [phrase, box]) == {
        "grounded_caption": Count(0, 1),
        "grounded_boxes": Count(1, boxes),
    }
    assert counts(item.kind, item.answer, [Ref("a moon"), box])["grounded_boxes"] == Count(0, boxes)
    assert counts(item.kind, item.answer, [phrase, box, phrase, box])["grounded_boxes"] == Count(1, boxes)


def test_the_blind_baseline_answers_from_training_frequencies_alone() -> None:
    blind = Blind(1, "raw", scenes=200)
    exist = [item for item in asked("raw") if item.kind == "exist"]
    assert {blind.answer(item.kind, spell(item.prompt)) for item in exist} <= {" yes", " no"}
    choice = next(item for item in asked("raw") if item.options)
    assert blind.answer(choice.kind, spell(choice.prompt), choice.options) in choice.options


@pytest.mark.parametrize(
    ("prompt_format", "digest"), [("raw", "391b20217c6c837d"), ("chatml", "ea4466a22c96ddc8")]
)
def test_the_questions_are_those_of_the_model_card(prompt_format: str, digest: str) -> None:
    """The shipped model's scores are of these very questions: recorded when its card was written."""
    facts = [
        (
            *(item.kind, item.prompt_format, [scene.name for scene in item.scenes], spell(item.prompt)),
            *(spell(item.answer), item.options),
            [(spell(each.prompt), spell(each.answer), each.scenes[0].name) for each in item.examples],
        )
        for item in asked(prompt_format)
    ]
    assert blake2b(repr(facts).encode(), digest_size=8).hexdigest() == digest


def run(out: Path, *options: str) -> int:
    return cli.main(["eval", "run", "tiny", "toyworld", "--out", str(out), "--device", "cpu", *options])


def test_f7_the_toy_world_is_asked_as_any_benchmark_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In parts, in an order of its own, and again after a kill: with the answers of one run."""
    assert run(tmp_path / "whole", "--limit", "2", "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert (whole["images"], whole["groups"]["captions"]["n"]) == (2, 2)
    assert set(whole["groups"]) == set(whole["blind"]) == set(GROUPS)
    for part in ("0/2", "1/2"):
        assert run(tmp_path / "parts", "--limit", "2", "--part", part) == 0
    kept = {file.name: file.read_bytes() for file in (tmp_path / "parts").glob("predictions-*")}
    capsys.readouterr()
    assert run(tmp_path / "parts", "--limit", "2", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert {name: (tmp_path / "parts" / name).read_bytes() for name in kept} == kept
    cards, records = card.read(tmp_path / "parts")
    assert [own.benchmark for own in cards] == [f"toyworld-{name}" for name in GROUPS]
    assert len(records) == whole["questions_asked"]


def test_f7_a_shuffled_run_takes_whole_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.data.datasets import toyworld
    from qwenvl.evaluation.run import Job, samples_of

    monkeypatch.setattr(toyworld, "IMAGES", 50)  # all are made before they are shuffled
    row = benchmark("toyworld")

    def scenes(**changes: Any) -> list[str]:
        job = Job(
            checkpoint="tiny", benchmark="toyworld", source=row.source(None), out=tmp_path, limit=2, **changes
        )
        return list(dict.fromkeys(map(row.unit, samples_of(job))))

    assert scenes() == ["test/1/0/0.7", "test/1/1/0.7"]
    assert len(scenes(shuffle=3)) == 2 and scenes(shuffle=3) != scenes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "7/3"], "expected K/N"),
        (["--part", "0/3", "--processes", "4"], "leave out --processes"),
        (["--part", "0/3", "--json"], "leave out --json"),
        (["--processes", "0"], "--processes is 0"),
        (["--shots", "2"], "takes no solved examples"),
        (["--shots", "-1"], "no fewer than 0 shots"),
        (["--rices"], "--rices says which solved examples"),
        (["--limit", "0"], "a limit of at least 1"),
        (["--data", "x.json"], "leave out --data"),
        (["--images", "."], "leave out --images"),
        (["--examples", "x.json"], "leave out --examples"),
        (["--examples-answers", "x.json"], "--examples-answers belongs to --examples"),
    ],
)
def test_f7_an_option_is_honoured_or_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *options) == 2
    assert message in capsys.readouterr().err
