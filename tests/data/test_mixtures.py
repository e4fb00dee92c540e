"""Mixtures in the paper's proportions, drawn the same way every time."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl.data import mixtures
from qwenvl.data.records import Caption, OcrPage, PlainText, Question, Record, Referring, to_json
from qwenvl.markup import Box, Image, Quad

IMAGE = Image("1.jpg")
QUAD = Quad(((1, 1), (2, 1), (2, 2), (1, 2)), label="x")


def sources(folder: Path) -> list[Path]:
    """Captions 200, questions 60 + 20, referring 100, pages 300, texts 100."""
    made: dict[str, list[Record]] = {
        "captions": [Caption(image=IMAGE, text=f"c{k}", source="CC3M") for k in range(200)],
        "questions": [
            *(Question(image=IMAGE, question=f"q{k}", answer="a", source="GQA") for k in range(60)),
            *(Question(image=IMAGE, question=f"mine{k}", answer="a", source="mine") for k in range(20)),
        ],
        "refer": [
            Referring(image=IMAGE, phrase=f"p{k}", boxes=(Box(1, 2, 3, 4),), source="GRIT")
            for k in range(100)
        ],
        "pages": [OcrPage(image=IMAGE, lines=(QUAD,), source="SynthDoG-en") for k in range(300)],
        "texts": [PlainText(text=f"t{k}", source="mine") for k in range(100)],
    }
    paths = []
    for name, records in made.items():
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(to_json(record) + "\n" for record in records) + "\n")
    return paths


def test_the_tables_are_the_papers() -> None:
    assert sum(row.millions for row in mixtures.MULTITASK) == pytest.approx(76.8)
    assert sum(row.millions for row in mixtures.PRETRAINING) == pytest.approx(1417.4)
    assert "LAION-COCO" not in mixtures.MULTITASK[0].datasets
    dual = [row for row in mixtures.MULTITASK if row.name in ("Ref Grounding", "Grounded Cap.")]
    assert dual[0].millions == dual[1].millions == 8.7


def test_shares_are_the_papers_over_the_tasks_there_are(tmp_path: Path) -> None:
    paths = sources(tmp_path)
    found = mixtures.index(paths, mixtures.MULTITASK)
    groups = found.groups
    assert found.unused == found.unusable == {}
    shares = mixtures.quotas(groups, mixtures.MULTITASK, 7330)  # 73.3M without Grounding, which has no source
    by_row = Counter[str]()
    for group, number in zip(groups, shares, strict=True):
        by_row[group.row] += number
    assert by_row == {
        "Captioning": 1970, "VQA": 360, "Ref Grounding": 870, "Grounded Cap.": 870, "OCR": 2480,
        "Pure-text Autoregression": 780,
    }  # fmt: skip
    assert {g.dataset: n for g, n in zip(groups, shares, strict=True) if g.row == "VQA"} == {
        "GQA": 270,
        "mine": 90,
    }
    text = mixtures.compare(groups, shares, mixtures.MULTITASK)
    assert "no source" in text and "mine" in text and "(not in the paper)" in text


def test_the_same_seed_draws_the_same_file_and_nothing_twice_before_all_once(tmp_path: Path) -> None:
    paths = sources(tmp_path)
    found = mixtures.index(paths, mixtures.MULTITASK)
    groups = found.groups
    shares = mixtures.quotas(groups, mixtures.MULTITASK, 1000)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mixtures.write(mixtures.draw(groups, shares, seed), found, tmp_path / name)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    lines = [json.loads(line) for line in first.splitlines()]
    assert len(lines) == 1000
    drawn = Counter(line["record"]["phrase"] for line in lines if line["format"] == "refer")
    assert max(drawn.values()) - min(drawn.values()) <= 1 and len(drawn) == 100
    formats = [line["format"] for line in lines]
    assert len(set(formats[:20])) > 2, "tasks are mixed, not one after another"


def test_the_natural_total_reads_no_row_twice(tmp_path: Path) -> None:
    groups = mixtures.index(sources(tmp_path), mixtures.MULTITASK).groups
    total = mixtures.natural_total(groups, mixtures.MULTITASK)
    shares = mixtures.quotas(groups, mixtures.MULTITASK, total)
    assert all(number <= len(group) + 1 for group, number in zip(groups, shares, strict=True))


def test_table_2_mixes_data_sets_of_captions(tmp_path: Path) -> None:
    paths = sources(tmp_path)
    found = mixtures.index(paths, mixtures.PRETRAINING)
    assert [(group.row, len(group)) for group in found.groups] == [("CC3M", 200)]
    assert found.unused["VQA"] == 80


def test_files_without_a_sample_are_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: there is no sample to mix; the files are empty"):
        mixtures.index([tmp_path / "a.jsonl"], mixtures.MULTITASK)


def test_a_line_that_is_no_record_names_its_file(tmp_path: Path) -> None:
    bad = tmp_path / "x.jsonl"
    bad.write_text('{"kind": []}\n{"kind": "dream"}\n')
    with pytest.raises(ValueError, match=r"none of the samples can be used \(.*x\.jsonl, line 1"):
        mixtures.index([bad], mixtures.MULTITASK)
    found = mixtures.index([*sources(tmp_path), bad], mixtures.MULTITASK)
    assert {kind: count for kind, (count, _) in found.unusable.items()} == {"form": 1, "broken record": 1}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.integers(0, 10_000))
def test_quotas_add_up_and_are_within_one(weights: list[float], total: int) -> None:
    shares = mixtures.largest_remainder(weights, total)
    assert sum(shares) == total
    assert all(abs(s - w * total / sum(weights)) <= 1 for s, w in zip(shares, weights, strict=True))
