"""The release's JSON lines beside the original files, and files that are not what they should be."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl.data.datasets.sample import Source
from qwenvl.evaluation import card
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.predictions import Prediction

from .conftest import PHRASE_SAID, dump, lines, paint


def scored(name: str, source: Source, said: dict[str, str]) -> float:
    row = benchmark(name)
    predictions = {key: Prediction(id=key, plain=text) for key, text in said.items()}
    return card.score(row, row.read(source), predictions, model="hand")[0][0].score.value


def test_converted_questions_score_as_the_originals(small: Callable, tmp_path: Path) -> None:
    made = small("okvqa")
    records: list[dict[str, object]] = [
        {"image": sample.images[0], "question": sample.text, "question_id": int(sample.id), "answer": "red"}
        for sample in benchmark("okvqa").read(made.source)
    ]
    source = Source(lines(tmp_path / "okvqa_val.jsonl", records), made.source.answers)
    assert scored("okvqa", source, dict(made.said)) == pytest.approx(made.value)
    with pytest.raises(ValueError, match="has one answer, but VQA accuracy is agreement with ten people"):
        scored("okvqa", Source(source.data), dict(made.said))


def test_converted_phrases(tmp_path: Path) -> None:
    image = str(paint(tmp_path / "a.jpg", size=(999, 999)))
    record = {"image": image, "sent": "the dog", "bbox": [0, 0, 499, 499], "width": 999, "height": 999}
    data = lines(tmp_path / "refcoco_val.jsonl", [record] * 5)
    assert scored("refcoco-val", Source(data), {str(k + 1): s for k, s in enumerate(PHRASE_SAID)}) == 60


def test_converted_choices(tmp_path: Path) -> None:
    image = str(paint(tmp_path / "a.jpg"))
    science = {"image": image, "question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "Look."}
    source = Source(lines(tmp_path / "scienceqa_test_img.jsonl", [science]))
    assert scored("scienceqa", source, {"1": "B"}) == 100
    prompt = f"<img>{image}</img>\nQuestion: Which?\nOptions: A. one\nB. two\nC. three\nD. four\nAnswer:"
    source = Source(lines(tmp_path / "seed.jsonl", [{"question_id": "7", "prompt": prompt, "answer": "C"}]))
    (sample,) = benchmark("seed-image").read(source)
    assert (sample.text, sample.options, sample.answers) == (
        "Which?",
        ("one", "two", "three", "four"),
        ("C",),
    )
    asked = benchmark("seed-image").ask(sample)
    assert "".join(getattr(part, "text", "") for part in asked) == prompt.split("</img>")[1]


def test_converted_charts_are_two_files(tmp_path: Path) -> None:
    image = str(paint(tmp_path / "a.png"))
    for part in ("human", "augmented"):
        lines(
            tmp_path / f"test_{part}.jsonl",
            [{"image": image, "question": "?", "question_id": 0, "answer": "5"}],
        )
    assert scored("chartqa", Source(tmp_path), {"human-0": "5", "augmented-0": "6"}) == 50


def test_mme_in_folders(tmp_path: Path) -> None:
    for k in range(2):
        paint(tmp_path / "existence" / f"{k}.jpg")
        (tmp_path / "existence" / f"{k}.txt").write_text("Is it there? ...\tYes\nIs it not? ...\tNo\n")
    from qwenvl.data.datasets.mme import samples as mme

    samples = mme(["existence"])(Source(tmp_path))
    assert [sample.id for sample in samples] == [f"existence/{k}.jpg/{q}" for k in range(2) for q in range(2)]
    assert Path(str(samples[0].images[0])).exists()
    with pytest.raises(ValueError, match=r"neither count\.txt nor a folder count"):
        mme(["count"])(Source(tmp_path))


def test_a_pickle_that_runs_code_is_refused(small: Callable) -> None:
    made = small("refcoco-val")

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return eval, ("1 / 0",)  # not print, which Ray replaces in a process that has imported it

    made.source.data.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(ValueError, match=r"asks for builtins\.eval"):
        benchmark("refcoco-val").read(made.source)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("docvqa", "val_v1.0.json", {"data": [{"id": 1}]}, "has no field 'questionId'"),
        ("docvqa", "val_v1.0.json", {"data": []}, "holds no question"),
        ("textvqa", "TextVQA_0.5.1_val.json", [{"question": "?"}], "has no field 'data'"),
        ("vizwiz", "val.json", [{"image": "a", "question": "?"}] * 2, "id 'a' twice"),
        ("nocaps", "val_captions.json", {"images": [], "annotations": [{"image_id": 1, "caption": ""}]},
         "does not list"),
    ],
)  # fmt: skip
def test_files_of_another_version_are_refused(
    small: Callable, name: str, file: str, content: object, message: str
) -> None:
    made = small(name)
    dump(made.source.data.parent / file, content)
    with pytest.raises(ValueError, match=message):
        benchmark(name).read(made.source)


def test_answers_of_another_split_are_refused(small: Callable) -> None:
    made = small("okvqa")
    file = json.loads(made.source.answers.read_text())
    file["annotations"][0]["question_id"] = 99
    dump(made.source.answers, file)
    with pytest.raises(ValueError, match=r"questions that .* does not ask, such as 99"):
        benchmark("okvqa").read(made.source)


def test_a_file_that_is_cut_off(small: Callable) -> None:
    for name in ("okvqa", "mmbench"):
        made = small(name)
        made.source.data.write_text(made.source.data.read_text()[:-30])
        with pytest.raises(ValueError, match="cut off"):
            benchmark(name).read(made.source)


def test_nothing_is_scored_for_a_nan_an_empty_answer_or_an_unknown_question(small: Callable) -> None:
    from qwenvl.evaluation.answering import _likeliest

    chosen = _likeliest([(-0.1,), (float("nan"),)], "AB")
    assert chosen.raw == chosen.plain == ""
    made = small("scienceqa")
    row = benchmark("scienceqa")
    samples = row.read(made.source)
    empty = {sample.id: Prediction(id=sample.id, plain="") for sample in samples}
    (result,), _ = card.score(row, samples, empty, model="hand")
    assert (result.score.value, result.score.failures) == (0, len(samples))
    with pytest.raises(ValueError, match="answer questions that scienceqa does not ask here, such as 'x'"):
        card.score(row, samples, {"x": Prediction(id="x")}, model="hand")
