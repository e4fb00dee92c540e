"""Each benchmark's own files, hand-made answers, and a score known to the last digit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qwenvl.cli as cli
from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation import card
from qwenvl.evaluation.benchmarks import (
    BENCHMARKS,
    DRAWN_TABLE,
    OWN_TABLE,
    TOY_TABLE,
    benchmark,
)
from qwenvl.evaluation.predictions import Prediction
from qwenvl.evaluation.published import FEW_SHOT_BENCHMARKS
from qwenvl.markup import Image, Ref, Text

PUBLISHED = [name for name, row in BENCHMARKS.items() if row.table not in (TOY_TABLE, OWN_TABLE, DRAWN_TABLE)]
JUDGED = [name for name in PUBLISHED if benchmark(name).metric is not None]


def predictions(said: dict[str, str]) -> dict[str, Prediction]:
    return {name: Prediction(id=name, plain=text, raw=text) for name, text in said.items()}


@pytest.mark.parametrize("name", JUDGED)
def test_hand_made_answers_score_what_the_hand_says(name: str, small: Callable) -> None:
    made, row = small(name), benchmark(name)
    samples = row.read(made.source)
    (result,), records = card.score(row, samples, predictions(made.said), model="hand")
    assert result.score.value == pytest.approx(made.value, abs=1e-9)
    assert result.score.low <= result.score.value <= result.score.high
    assert (result.score.n, result.score.failures) == (len(samples), made.failures)
    assert len(samples) >= 3 and len(records) == len(samples)


@pytest.mark.parametrize("name", JUDGED)
def test_a_part_of_the_answers_is_never_scored_as_the_whole(name: str, small: Callable) -> None:
    made, row = small(name), benchmark(name)
    samples = row.read(made.source)
    first = dict(list(predictions(made.said).items())[:2])
    (result,), _ = card.score(row, samples, first, model="hand")
    assert (result.score.n, result.score.expected, result.score.complete) == (2, len(samples), False)


def test_every_benchmark_of_the_paper_has_its_row_and_its_numbers() -> None:
    tables = {row.table for row in BENCHMARKS.values()}
    assert tables == {
        "Table 4",
        "Table 5",
        "Table 6",
        "Table 7",
        "Table 11",
        "release",
        TOY_TABLE,
        OWN_TABLE,
        DRAWN_TABLE,
    }
    for row in BENCHMARKS.values():
        printed = row.published.qwen_vl is not None or row.published.qwen_vl_chat is not None
        assert printed == (row.table not in ("release", TOY_TABLE, OWN_TABLE, DRAWN_TABLE)), row.name


def test_rotations_of_mmbench_count_as_one_question_and_by_majority(small: Callable) -> None:
    made, row = small("mmbench"), benchmark("mmbench")
    samples = row.read(made.source)
    (result,), records = card.score(row, samples, predictions(made.said), model="hand")
    assert result.score.notes == {"majority of rotations": 100, "each rotation by itself": 75}
    assert [record["right"] for record in records] == [True, True, False, False, False, False, False, True]


def test_prompts_are_those_of_the_release(small: Callable) -> None:
    def content(name: str) -> list[object]:
        row = benchmark(name)
        shown = row.ask(row.read(small(name).source)[0])
        return ["<image>" if isinstance(part, Image) else part for part in shown]

    assert content("nocaps") == ["<image>", Text("Describe the image in English:")]
    assert content("okvqa") == ["<image>", Text("What? Answer:")]
    assert content("refcoco-val") == ["<image>", Ref("dog")]
    assert content("scienceqa") == [
        "<image>",
        Text("Context: N/A\nQuestion: Which?\nOptions: A. a\nB. b\nC. c\nAnswer:"),
    ]
    frames = content("seed-video")
    assert frames[:-1] == ["<image>", Text("\n")] * 8
    assert frames[-1] == Text(
        "Question: Which?\nOptions: A. option a\nB. option b\nC. option c\nD. option d\nAnswer:"
    )
    assert content("mme-cognition")[1] == Text("\nIs it red? Please answer yes or no.")
    (asked,) = content("mmlu")
    assert isinstance(asked, Text) and asked.text.count("Answer:") == 6 and asked.text.endswith("Answer:")


def files(small: Callable, name: str) -> tuple[list[str], list[str]]:
    """The options that name a benchmark's files, and those that name the same files as solved examples."""
    source = small(name).source
    own, examples = ["--data", str(source.data)], ["--examples", str(source.data)]
    if source.answers is not None:
        own += ["--answers", str(source.answers)]
        examples += ["--examples-answers", str(source.answers)]
    return own, examples


def run_tiny(name: str, options: list[str], out: Path, expected: int) -> list[dict[str, object]]:
    """Run a benchmark with the tiny model from the command line; every question has its answer and its verdict."""
    arguments = ["eval", "run", "tiny", name, *options, "--out", str(out), "--device", "cpu", "--json"]
    assert cli.main(arguments) == 0
    cards, records = card.read(out)
    assert len(records) == len({record["id"] for record in records}) == expected
    assert all(record["prompt"] for record in records)
    if benchmark(name).metric is not None:
        (own,) = cards
        assert (own.score.n, own.score.expected) == (expected, expected)
        assert own.score.low <= own.score.value <= own.score.high
        assert all("score" in record and "parsed" in record for record in records)
    return records


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tiny_model_goes_from_files_to_a_score(name: str, small: Callable, tmp_path: Path) -> None:
    options, _ = files(small, name)
    row, asked = benchmark(name), benchmark(name).read(small(name).source)
    records: list[dict[str, Any]] = run_tiny(name, options, tmp_path / "run", len(asked))
    if row.decoding is None:
        letters = [set("ABCDE"[: len(sample.options)]) for sample in asked]
        by_id: dict[Any, set[str]] = {sample.id: own for sample, own in zip(asked, letters, strict=True)}
        assert all(len(r["nll"]) == len(by_id[r["id"]]) and r["plain"] in by_id[r["id"]] for r in records)
    if row.metric is None:  # the judge's part, replayed: 7 in the first place, 5 in the second
        scored = ["eval", "score", name, *options, "--predictions", str(tmp_path / "run" / "scored.jsonl")]
        dry = tmp_path / "judge.jsonl"
        assert cli.main([*scored, "--dry-run", str(dry)]) == 0
        said = [{**inquiry, "reply": "7 5"} for inquiry in map(json.loads, dry.read_text().splitlines())]
        dry.write_text("".join(json.dumps(reply) + "\n" for reply in said))
        assert cli.main([*scored, "--replay", str(dry), "--out", str(tmp_path / "judged")]) == 0
        ((rated,), _) = card.read(tmp_path / "judged")
        assert (rated.score.value, rated.score.n) == (600, len(asked))


@pytest.mark.parametrize("name", FEW_SHOT_BENCHMARKS)
@pytest.mark.parametrize("likeness", [False, True])
def test_the_tiny_model_with_solved_examples(
    name: str, likeness: bool, small: Callable, tmp_path: Path
) -> None:
    options, examples = files(small, name)
    few = [*options, *examples, "--shots", "2", *["--rices"] * likeness]
    records: list[dict[str, Any]] = run_tiny(name, few, tmp_path / "run", 5)
    assert all(str(record["prompt"]).count("<img>") == 3 for record in records)


def test_runs_with_and_without_solved_examples_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score of one was written over that of the other."""
    monkeypatch.chdir(tmp_path)
    asked = ["eval", "run", "tiny", "toyworld-vqa", "--limit", "2", "--device", "cpu"]
    assert cli.main(asked) == 0 and cli.main([*asked, "--shots", "2"]) == 0
    assert sorted(each.name for each in Path("runs/eval/tiny").iterdir()) == [
        "toyworld-vqa",
        "toyworld-vqa-2-shot",
    ]
    assert cli.main(["eval", "report", "runs/eval"]) == 2
    assert (
        "such as runs/eval/tiny/toyworld-vqa, runs/eval/tiny/toyworld-vqa-2-shot." in capsys.readouterr().err
    )
    for part in ([], ["--part", "0/2"]):
        assert cli.main([*asked, "--shots", "1", "--out", "runs/eval/tiny/toyworld-vqa", *part]) == 2
        assert "with 0 solved examples, this one has 1; give another --out." in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [name for name, row in BENCHMARKS.items() if row.table == TOY_TABLE and not row.metric.figures]
)
def test_the_toy_world_is_a_benchmark_of_every_kind(name: str, tmp_path: Path) -> None:
    row = benchmark(name)
    samples = row.read(row.source(None))[:6]
    key = {sample.id: in_the_models_words(sample) for sample in samples}
    (result,), _ = card.score(row, samples, predictions(key), model="key")
    # CIDEr of a caption equal to its only reference: 250 for each length of n-grams that it has, up to four
    words = [min(4, len(sample.answers[0].split())) for sample in samples]
    whole = 250 * sum(words) / len(words) if name == "toyworld-caption" else 100
    assert result.score.value == pytest.approx(whole)
    records: list[dict[str, Any]] = run_tiny(name, ["--limit", "6"], tmp_path / "run", 6)
    assert [record["id"] for record in records] == [sample.id for sample in samples]
    assert all(
        str(record["prompt"]).count("<img>") == 1 + (name == "toyworld-two-images") for record in records
    )


def in_the_models_words(sample: Sample) -> str:
    """A right answer; a box as the model writes it."""
    if sample.box is None:
        return sample.answers[0]
    assert sample.size is not None
    left, top, right, bottom = (round(1000 * value / sample.size[0]) for value in sample.box)
    return f"({left},{top}),({right},{bottom})"


def test_the_toy_world_makes_its_own_examples(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = run_tiny(
        "toyworld-vqa", ["--limit", "4", "--shots", "2"], tmp_path / "run", 4
    )
    assert all(str(record["prompt"]).count(" Answer:") == 3 for record in records)
