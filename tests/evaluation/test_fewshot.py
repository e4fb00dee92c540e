"""Solved examples before a question: drawn as the release draws them, or by likeness."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl.chat import Assistant
from qwenvl.data.datasets.sample import Sample, Source
from qwenvl.evaluation import fewshot
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.published import FEW_SHOT, SHOTS
from qwenvl.evaluation.run import Job, plan, samples_of
from qwenvl.markup import Image, Text

from .conftest import paint


def test_random_examples_are_drawn_anew_for_every_question_from_seed_0() -> None:
    random.seed(0)
    assert fewshot.at_random(20, 50, 4) == [random.sample(range(50), 4) for _ in range(20)]


def test_examples_follow_without_separator() -> None:
    solved = Sample(id="1", images=("a.jpg",), text="Q1?", answers=("no", "yes", "yes"))
    asked = Sample(id="2", images=("b.jpg",), text="Q2?")
    content = fewshot.with_examples(asked, [solved], benchmark("okvqa"))
    assert content == [Image("a.jpg"), Text("Q1? Answer:"), Text(" yes"), Image("b.jpg"), Text("Q2? Answer:")]


def test_an_example_needs_an_answer_and_a_pool_its_size() -> None:
    with pytest.raises(ValueError, match="has no answer"):
        fewshot.with_examples(Sample(id="2"), [Sample(id="1")], benchmark("okvqa"))
    with pytest.raises(ValueError, match="8 examples from a pool of 5"):
        fewshot.at_random(1, 5, 8)


def test_rices_puts_the_likest_image_last(tmp_path: Path, model: Path) -> None:
    colours = ("red", "white", "blue", "#fe0101")
    pool = [Sample(id=c, images=(str(paint(tmp_path / f"{k}.png", c)),)) for k, c in enumerate(colours)]
    asker = Asker(Assistant.load(model), "raw")
    for k, sample in enumerate(pool):
        (order,) = fewshot.by_likeness(asker, [sample], pool, 3)
        assert order[-1] == k and len(set(order)) == 3
    (order,) = fewshot.by_likeness(asker, [pool[0]], pool, 2)
    assert order == [3, 0]


@pytest.mark.parametrize("rices", [False, True])
def test_a_run_with_examples(small: Callable, model: Path, tmp_path: Path, rices: bool) -> None:
    source: Source = small("vizwiz").source
    job = Job(
        checkpoint=str(model), benchmark="vizwiz", source=source, out=tmp_path, shots=2, pool=source, rices=rices
    )  # fmt: skip
    planned = plan(job, samples_of(job))
    assert all(sum(isinstance(part, Image) for part in p.content) == 3 for p in planned)
    assert [p.key for p in plan(job, samples_of(job))] == [p.key for p in planned]


def test_the_paper_and_the_axis_of_figure_4() -> None:
    assert SHOTS == (0, 4, 8, 16, 32)
    assert FEW_SHOT["okvqa", 4].qwen_vl == 63.6
