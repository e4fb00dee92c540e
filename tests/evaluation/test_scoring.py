"""Intervals, sums over parts, and MME's published scores through our way of adding up."""

import json
from pathlib import Path

import numpy as np
import pytest

from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.scoring import EXACT, MME, RELAXED, VQA, ScoredItem, total

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "mme.json"


def of(values: list[float], groups: list[str] | None = None) -> tuple[list[Sample], list[ScoredItem]]:
    groups = groups or [""] * len(values)
    samples = [Sample(id=str(k), group=group) for k, group in enumerate(groups)]
    return samples, [ScoredItem(value, "") for value in values]


def test_the_bootstrap_is_the_binomial_interval() -> None:
    score = total(EXACT, *of([1.0] * 600 + [0.0] * 400))
    half = 196 * np.sqrt(0.6 * 0.4 / 1000)
    assert score.value == pytest.approx(60)
    assert (score.low, score.high) == (pytest.approx(60 - half, abs=0.6), pytest.approx(60 + half, abs=0.6))
    assert total(EXACT, *of([1.0] * 600 + [0.0] * 400)) == score


def test_parts_of_unequal_size_count_equally_where_the_paper_says_so() -> None:
    values, groups = [1.0, 1.0, 1.0, 0.0], ["human"] * 3 + ["augmented"]
    assert total(RELAXED, *of(values, groups)).value == 50
    assert total(EXACT, *of(values, groups)).value == 75
    assert total(EXACT, *of(values, groups)).groups == {"human": (100, 3), "augmented": (0, 1)}


def test_beside_the_official_score_stands_the_one_without_its_slips() -> None:
    chart = [Sample(id=k, answers=(truth,), group=group) for k, truth, group in
             (("1", "1.05", "human"), ("2", "0.0", "human"), ("3", "0", "augmented"))]  # fmt: skip
    # a model's 1 is more than 5 % of itself off; its 0 is compared as text; so is a true 0 in the documented order
    assert RELAXED.notes and RELAXED.notes(chart, ["1", "0", "0"]) == {"with the tolerance as documented": 75}
    assert total(RELAXED, chart, RELAXED.score_items(chart, ["1", "0", "0"])).value == 50
    people = tuple(["3.5"] * 9 + ["4"])
    vqa = [Sample(id="1", answers=people)]
    assert VQA.notes and VQA.notes(vqa, [""]) == {"with the regular expressions as meant": 0}
    assert VQA.notes(vqa, ["3.5"]) == {"with the regular expressions as meant": 100}


def test_no_answers_are_no_score() -> None:
    with pytest.raises(ValueError, match="no question has an answer"):
        total(EXACT, [], [])


# The release's sub-scores of Qwen-VL-Chat, and the images of each subtask; right answers follow from them.
PUBLISHED = {
    "existence": (158.33, 30), "count": (150.0, 30), "position": (128.33, 30), "color": (170.0, 30),
    "posters": (178.57, 147), "celebrity": (120.59, 170), "scene": (152.25, 200), "landmark": (164.0, 200),
    "artwork": (125.5, 200), "OCR": (140.0, 20), "commonsense_reasoning": (130.71, 70),
    "numerical_calculation": (40.0, 20), "text_translation": (147.5, 20), "code_reasoning": (42.5, 20),
}  # fmt: skip


@pytest.mark.parametrize(("name", "printed"), [("mme-perception", 1487.58), ("mme-cognition", 360.71)])
def test_the_published_scores_of_mme_add_up(name: str, printed: float) -> None:
    from qwenvl.evaluation.metrics.mme import COGNITION, PERCEPTION

    samples, answers = [], []
    for subtask in PERCEPTION if name == "mme-perception" else COGNITION:
        score, images = PUBLISHED[subtask]
        points = round(score * 2 * images / 100)  # right questions and twice the images with both right
        both = next(b for b in range(points // 4, -1, -1) if points - 2 * b <= images + b)
        said = ["yes", "yes"] * both + ["yes", "no"] * (points - 4 * both)
        said += ["no", "no"] * (images - len(said) // 2)
        answers += said
        samples += [
            Sample(id=f"{subtask}/{k // 2}/{k % 2}", answers=("Yes",), group=subtask)
            for k in range(len(said))
        ]
    metric = benchmark(name).metric
    assert metric is MME
    result = total(metric, samples, metric.score_items(samples, answers))
    assert round(result.value, 2) == printed
    assert {k: round(v, 2) for k, (v, _) in result.groups.items()} == {
        k: PUBLISHED[k][0] for k in result.groups
    }


def test_mme_is_scored_as_the_recorded_rule() -> None:
    recorded = json.loads(GOLDEN.read_text())["subtasks"]
    for name, task in recorded.items():
        items = task["items"]
        samples = [
            Sample(id=f"{name}/{k // 2}/{k % 2}", answers=(item["gt"],), group=name)
            for k, item in enumerate(items)
        ]
        scored = MME.score_items(samples, [item["pred"] for item in items])
        assert total(MME, samples, scored).value == pytest.approx(task["score"])
        assert [verdict.parsed for verdict in scored] == [item["label"] for item in items]
