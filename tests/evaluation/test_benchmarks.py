"""Each benchmark's own files, hand-made answers, and a score known to the last digit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl.evaluation import card
from qwenvl.evaluation.benchmarks import BENCHMARKS, benchmark
from qwenvl.evaluation.predictions import Prediction
from qwenvl.evaluation.run import Job, plan, run, samples_of
from qwenvl.markup import Image, Ref, Text

Make = Callable[[str], object]
JUDGED = [name for name, row in BENCHMARKS.items() if row.metric is not None]


def predictions(said: dict[str, str]) -> dict[str, Prediction]:
    return {name: Prediction(id=name, plain=text, raw=text) for name, text in said.items()}


@pytest.mark.parametrize("name", JUDGED)
def test_hand_made_answers_score_what_the_hand_says(name: str, small: Callable) -> None:
    made, row = small(name), benchmark(name)
    samples = row.read(made.source)
    result, records = card.score(row, samples, predictions(made.said), model="hand")
    assert result.score.value == pytest.approx(made.value, abs=1e-9)
    assert result.score.low <= result.score.value <= result.score.high
    assert (result.score.n, result.score.failures) == (len(samples), made.failures)
    assert len(samples) >= 3 and len(records) == len(samples)


@pytest.mark.parametrize("name", JUDGED)
def test_a_part_of_the_answers_is_never_scored_as_the_whole(name: str, small: Callable) -> None:
    made, row = small(name), benchmark(name)
    samples = row.read(made.source)
    first = dict(list(predictions(made.said).items())[:2])
    result, _ = card.score(row, samples, first, model="hand")
    assert (result.score.n, result.score.expected, result.score.complete) == (2, len(samples), False)


def test_every_benchmark_of_the_paper_has_its_row_and_its_numbers() -> None:
    tables = {row.table for row in BENCHMARKS.values()}
    assert tables == {"Table 4", "Table 5", "Table 6", "Table 7", "Table 11", "release"}
    for row in BENCHMARKS.values():
        printed = row.published.qwen_vl is not None or row.published.qwen_vl_chat is not None
        assert printed == (row.table != "release"), row.name


def test_prompts_are_those_of_the_release(small: Callable) -> None:
    def content(name: str) -> list[object]:
        row = benchmark(name)
        shown = row.ask(row.read(small(name).source)[0])
        return ["<picture>" if isinstance(part, Image) else part for part in shown]

    assert content("nocaps") == ["<picture>", Text("Describe the image in English:")]
    assert content("okvqa") == ["<picture>", Text("What? Answer:")]
    assert content("refcoco-val") == ["<picture>", Ref("dog")]
    assert content("scienceqa") == [
        "<picture>",
        Text("Context: N/A\nQuestion: Which?\nOptions: A. a\nB. b\nC. c\nAnswer:"),
    ]
    frames = content("seed-video")
    assert frames[:-1] == ["<picture>", Text("\n")] * 8
    assert frames[-1] == Text(
        "Question: Which?\nOptions: A. option a\nB. option b\nC. option c\nD. option d\nAnswer:"
    )
    assert content("mme-cognition")[1] == Text("\nIs it red? Please answer yes or no.")
    (asked,) = content("mmlu")
    assert isinstance(asked, Text) and asked.text.count("Answer:") == 6 and asked.text.endswith("Answer:")


@pytest.mark.parametrize(
    "name", [name for name in BENCHMARKS if not name.startswith("refcoco") or name == "refcoco-val"]
)
def test_a_model_answers_every_question(name: str, small: Callable, model: Path, tmp_path: Path) -> None:
    job = Job(checkpoint=str(model), benchmark=name, source=small(name).source, out=tmp_path / "run")
    answers = run(job)
    assert [answer.id for answer in answers] == [planned.sample.id for planned in plan(job, samples_of(job))]
    assert all(answer.prompt for answer in answers)
    if benchmark(name).decoding is None:
        assert all(len(answer.nll) >= 2 and answer.plain in "ABCDE" for answer in answers)
