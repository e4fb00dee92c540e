"""F-104: options stay with their letters when one is empty, and an answer that names none is refused at once."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qwenvl.cli as cli
from qwenvl.data.datasets.sample import Sample, Source
from qwenvl.evaluation import card, submissions
from qwenvl.evaluation.answering import _likeliest, _options
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.predictions import Prediction
from qwenvl.markup import Text


def image() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "blue").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def mmbench(folder: Path, *rows: tuple[str, ...]) -> Source:
    """Rows of index, A, B, C, D, answer."""
    lines = ["index\timage\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory"]
    for index, *options, answer in rows:
        lines.append("\t".join([index, image(), "Which?", "", *options, answer, "logic"]))
    (folder / "mmbench.tsv").write_text("\n".join(lines) + "\n")
    return Source(folder / "mmbench.tsv")


def asked(name: str, sample: Sample) -> str:
    return "".join(part.text for part in benchmark(name).ask(sample) if isinstance(part, Text))


def test_f104_options_stay_with_their_letters(tmp_path: Path) -> None:
    row = benchmark("mmbench")
    (sample,) = row.read(mmbench(tmp_path, ("1", "", "dog", " ", "cat", "D")))
    assert sample.letters == ("B", "D") and sample.option("D") == "cat"
    assert "Options: B. dog\nD. cat\nAnswer:" in asked("mmbench", sample)
    assert _options(row, sample) == [" B", " D"]
    assert _likeliest([(-2.0,), (-1.0,)], sample.letters).plain == "D"
    [right], records = card.score(row, [sample], {"1": Prediction(id="1", plain="D")}, model="hand")
    assert right.score.value == 100 and records[0]["right"] is True
    for wrong in ("A", "B", "C", "BD", ""):
        [result], _ = card.score(row, [sample], {"1": Prediction(id="1", plain=wrong)}, model="hand")
        assert result.score.value == 0 and result.score.failures == (wrong != "B"), wrong


def test_f104_rotations_with_an_empty_option(tmp_path: Path) -> None:
    rows = [
        ("1", "", "dog", "cat", "", "C"),
        ("1000001", "cat", "", "dog", "", "A"),
        ("2000001", "dog", "cat", "", "", "B"),
    ]
    row = benchmark("mmbench")
    samples = row.read(mmbench(tmp_path, *rows))
    said = {"1": "C", "1000001": "A", "2000001": "A"}
    [result], _ = card.score(
        row, samples, {k: Prediction(id=k, plain=v) for k, v in said.items()}, model="hand"
    )
    assert result.score.value == 0
    assert result.score.notes["majority of rotations"] == 100
    submissions.write("mmbench", samples, said, tmp_path / "sheet.xlsx")
    assert (tmp_path / "sheet.xlsx").stat().st_size > 0


def test_f104_such_a_row_is_asked_and_scored_from_end_to_end(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = mmbench(
        tmp_path,
        ("1", "", "dog", "cat", "", "C"),
        ("2", "dog", "", "", "cat", "D"),
        ("3", "a", "b", "", "", "A"),
    )
    arguments = [
        "eval",
        "run",
        str(model),
        "mmbench",
        "--data",
        str(source.data),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main([*arguments, "--json"]) == 0, capsys.readouterr().err
    found = {}
    for path in (tmp_path / "out").glob("predictions-*"):
        found |= {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}
    for name, letters in (("1", "BC"), ("2", "AD"), ("3", "AB")):
        assert found[name]["plain"] in letters and len(found[name]["nll"]) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1", "", "dog", "cat", "", "A"), "has the answer 'A', but offers B, C"),
        (("1", "x", "dog", "cat", "", "D"), "has the answer 'D', but offers A, B, C"),
        (("1", "x", "dog", "cat", "", "AB"), "has the answer 'AB'"),
        (("1", "x", "dog", "cat", "", "5"), "has the answer '5'"),
        (("1", "", "dog", "", "", "B"), "offers fewer than two options"),
    ],
)
def test_f104_an_answer_that_is_no_option_is_refused_before_anything_is_asked(
    tmp_path: Path, row: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark("mmbench").read(mmbench(tmp_path, row))


def test_f104_answers_to_some_questions_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no answer to 1 of 2 questions, such as 2; a split has"):
        benchmark("mmbench").read(
            mmbench(tmp_path, ("1", "a", "b", "", "", "A"), ("2", "a", "b", "", "", ""))
        )
    assert (
        len(
            benchmark("mmbench").read(
                mmbench(tmp_path, ("1", "a", "b", "", "", ""), ("2", "a", "b", "", "", ""))
            )
        )
        == 2
    )


@pytest.mark.parametrize("answer", [3, -1, 99, "B", True, None, [1], 1.0])
def test_f104_numbers_of_no_option_are_refused(small: Callable, answer: Any) -> None:
    made = small("scienceqa")
    problems = json.loads(made.source.data.read_text())
    problems["0"]["answer"] = answer
    made.source.data.write_text(json.dumps(problems))
    with pytest.raises(ValueError, match="has the answer"):
        benchmark("scienceqa").read(made.source)


def test_f104_science_with_an_empty_choice(small: Callable) -> None:
    made = small("scienceqa")
    problems = json.loads(made.source.data.read_text())
    problems["1"]["choices"] = ["", "one", None, "three"]
    made.source.data.write_text(json.dumps(problems))
    sample = next(each for each in benchmark("scienceqa").read(made.source) if each.id == "1")
    assert sample.letters == ("B", "D") and sample.answers == ("B",)
    assert asked("scienceqa", sample).endswith("Options: B. one\nD. three\nAnswer:")


def test_f104_seed_with_an_empty_choice(tmp_path: Path, small: Callable) -> None:
    made = small("seed-image")
    sheet = json.loads(made.source.data.read_text())
    sheet["questions"][2]["choice_a"] = ""
    made.source.data.write_text(json.dumps(sheet))
    assert benchmark("seed-image").read(made.source)[1].letters == ("B", "C", "D")
    prompt = "Question: Which?\nOptions: B. two\nof two lines\nD. four\nAnswer:"
    lines = tmp_path / "seed.jsonl"
    lines.write_text(
        json.dumps({"question_id": "7", "prompt": f"<img>a.jpg</img>\n{prompt}", "answer": "D"}) + "\n"
    )
    (sample,) = benchmark("seed-image").read(Source(lines))
    assert sample.options == ("", "two\nof two lines", "", "four")
    assert asked("seed-image", sample).strip() == prompt


def test_f104_exams_with_an_empty_option(tmp_path: Path) -> None:
    for part in ("dev", "test"):
        (tmp_path / part).mkdir()
    (tmp_path / "test" / "algebra_test.csv").write_text("What?,,two,three,four,C\n")
    (sample,) = benchmark("mmlu").read(Source(tmp_path))
    assert sample.letters == ("B", "C", "D") and sample.text == "What?\nB. two\nC. three\nD. four\nAnswer:"
    (tmp_path / "test" / "algebra_test.csv").write_text("What?,,two,three,four,A\n")
    with pytest.raises(ValueError, match="row 1 question algebra-0 has the answer 'A', but offers B, C, D"):
        benchmark("mmlu").read(Source(tmp_path))
