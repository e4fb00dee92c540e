"""`qwenvl eval run`, `score` and `report` as a person types them."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import qwenvl.cli as cli


@pytest.fixture
def said(small: Callable, tmp_path: Path) -> Callable[[str], list[str]]:
    """The arguments that score a benchmark's hand-made answers."""

    def write(name: str) -> list[str]:
        made = small(name)
        path = tmp_path / "said.json"
        path.write_text(json.dumps([{"question_id": key, "answer": text} for key, text in made.said.items()]))
        answers = [] if made.source.answers is None else ["--answers", str(made.source.answers)]
        return [name, "--predictions", str(path), "--data", str(made.source.data), *answers]

    return write


def test_a_whole_evaluation_from_run_to_page(
    small: Callable, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = small("refcoco-val"), tmp_path / "run"
    arguments = ["eval", "run", str(model), "refcoco-val", "--data", str(made.source.data), "--out", str(out)]
    arguments += ["--answers", str(made.source.answers), "--json"]
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["score"]["n"], result["paper"], result["published"]["best_name"]) == (
        5,
        89.36,
        "Shikra-13B",
    )
    scored = [json.loads(line) for line in (out / "scored.jsonl").read_text().splitlines()]
    assert all(
        {"prompt", "raw", "plain", "parsed", "score", "failed", "truth"} <= set(line) for line in scored
    )
    assert scored[0]["prompt"] == "<img></img><ref>dog</ref>" and scored[0]["raw"].startswith("<box>")
    assert cli.main([*arguments[:4], "--predictions", "x"]) == 2
    again = ["eval", "score", "refcoco-val", "--predictions", str(out / "scored.jsonl"), "--json"]
    again += ["--data", str(made.source.data), "--answers", str(made.source.answers)]
    capsys.readouterr()
    assert cli.main(again) == 0
    assert json.loads(capsys.readouterr().out)["score"] == result["score"]


@pytest.mark.parametrize("name", ["okvqa", "chartqa", "mme-cognition", "nocaps"])
def test_scoring_a_file_of_answers(
    name: str, said: Callable[[str], list[str]], small: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", "score", *said(name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"]["value"] == pytest.approx(small(name).value)


def test_missing_answers_are_counted_in_red_and_status_1(
    said: Callable[[str], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = said("okvqa")
    path = tmp_path / "said.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["eval", "score", *arguments]) == 1
    error = capsys.readouterr().err
    plain = re.sub(r"\x1b\[[0-9;]*m", "", error)
    assert "2 of 5 questions have a score" in plain and "31m" in error
    assert cli.main(["eval", "score", *arguments, "--partial"]) == 0


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vqav2", {"question_id", "answer"}),
        ("vizwiz", {"image", "answer"}),
        ("docvqa", {"questionId", "answer"}),
    ],
)
def test_files_for_the_servers(
    name: str, fields: set[str], said: Callable[[str], list[str]], tmp_path: Path
) -> None:
    target = tmp_path / "submission.json"
    assert cli.main(["eval", "score", *said(name), "--submission", str(target)]) == 0
    records = json.loads(target.read_text())
    assert len(records) == 5 and all(set(record) == fields for record in records)


def test_the_sheet_for_mmbench(said: Callable[[str], list[str]], tmp_path: Path) -> None:
    target = tmp_path / "mmbench.xlsx"
    assert cli.main(["eval", "score", *said("mmbench"), "--submission", str(target)]) == 0
    with zipfile.ZipFile(target) as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
    cells = re.findall(r"<t [^>]*>([^<]*)</t>", sheet)
    assert cells[:7] == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert cells[7:14] == ["0", "Which one?", "up", "down", "", "", "A"]
    letters = dict(
        zip(cells[7::7], cells[13::7], strict=True)
    )  # every rotation gets the option that most chose
    assert letters == {"0": "A", "1000000": "B", "1": "A", "1000001": "B", "2": "A", "1000002": "B", "2000002": "C",
                       "3": "A"}  # fmt: skip


def test_touchstone_by_replay(
    said: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, dry = ["eval", "score", *said("touchstone-cn")], tmp_path / "dry.jsonl"
    assert cli.main(arguments) == 2
    assert "TouchStone needs a judge" in capsys.readouterr().err
    assert cli.main([*arguments, "--dry-run", str(dry)]) == 0
    filled = [{**json.loads(line), "reply": "6 6"} for line in dry.read_text().splitlines()]
    dry.write_text("".join(json.dumps(record) + "\n" for record in filled))
    capsys.readouterr()
    assert cli.main([*arguments, "--replay", str(dry), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"]["value"] == 600


def test_the_page_compares_runs_and_needs_nothing_from_outside(
    said: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name in ("refcoco-val", "okvqa", "docvqa"):
        for model in ("first", "second-chat"):
            folders.append(str(tmp_path / f"{name}-{model}"))
            assert cli.main(["eval", "score", *said(name), "--out", folders[-1], "--model", model]) == 0
    page = tmp_path / "page.html"
    assert cli.main(["eval", "report", *folders, "--out", str(page)]) == 0
    assert cli.main(["eval", "report", *folders, "--out", str(tmp_path / "page.txt")]) == 2
    assert "ends in .html" in capsys.readouterr().err and not (tmp_path / "page.txt").exists()
    text = page.read_text()
    assert text.count("<figure") >= 30 and text.count("data:image/webp;base64,") >= 30
    assert "<svg" in text and "the paper" in text and "89.36" in text and "88.55" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
    table = page.with_suffix(".md").read_text()
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 1 + len(folders)
    assert "| RefCOCO val | first | 60.00 |" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tiny", "okvga"], "did you mean 'okvqa'?"),
        (["run", "tiny", "okvqa"], "okvqa needs its files: --data FILE"),
        (
            ["score", "okvqa", "--predictions", "none.json", "--data", "none.json"],
            "there is no file none.json",
        ),
        (["report", "nowhere"], "has no score.json"),
        (["report"], "no runs named"),
        (["run", "tiny", "toyworld-vqa", "--part", "2/2"], "expected K/N"),
        (["run", "tiny", "toyworld-vqa", "--part", "rank"], "RANK and WORLD_SIZE"),
        (["run", "tiny", "toyworld-two-images", "--prompt-format", "raw"], "in dialogues only"),
        (
            ["run", "tiny", "mmlu", "--data", ".", "--shots", "2", "--examples", "."],
            "takes no solved examples",
        ),
        (["score", "okvqa", "--predictions", "x", "--judge", "http://x"], "--judge is for TouchStone alone"),
        (
            ["score", "okvqa", "--predictions", "x", "--judge-model", "x"],
            "--judge-model is for TouchStone alone",
        ),
        (["score", "vqav2", "--predictions", "x", "--submission", "y", "--json"], "leave out --json"),
        (["score", "touchstone-en", "--predictions", "x", "--dry-run", "y", "--replay", "z"], "out --replay"),
        (
            ["score", "touchstone-en", "--predictions", "x", "--replay", "y", "--judge-model", "z"],
            "give its URL",
        ),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_f7_a_chat_model_is_asked_raw_only_with_notice_or_as_it_is_told(
    small: Callable, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DocVQA of a ChatML checkpoint: raw as the release's script asks, which stderr says, or ChatML by option."""
    data = ["--data", str(small("docvqa").source.data), "--out", str(tmp_path / "run")]
    command = ["eval", "run", str(model), "docvqa", *data]
    assert cli.main(command) == 0
    out, error = capsys.readouterr()
    assert (
        "docvqa is asked in the format of the release's script, raw" in error
        and "--prompt-format chatml" in error
    )
    assert out.startswith("DocVQA  ANLS")
    raw = (tmp_path / "run" / "scored.jsonl").read_text()
    assert cli.main([*command, "--prompt-format", "chatml"]) == 0
    out, error = capsys.readouterr()
    assert "is asked in the format" not in error and out.startswith("DocVQA, asked in ChatML  ANLS")
    keys = [{json.loads(line)["key"] for line in text.splitlines()} for text in
            (raw, (tmp_path / "run" / "scored.jsonl").read_text())]  # fmt: skip
    assert not keys[0] & keys[1], "answers to the one are no answers to the other"


def test_f7_json_of_answers_that_a_judge_scores(
    small: Callable, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = small("touchstone-en")
    command = ["eval", "run", str(model), "touchstone-en", "--data", str(made.source.data), "--json"]
    assert cli.main([*command, "--limit", "1", "--out", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "benchmark": "touchstone-en", "model": model.name, "answered": 1, "expected": 1, "score": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "0", "answer": "red", "seconds": [1]}', "seconds is [1]"),
        ('{"id": "0", "answer": "red", "seconds": "1"}', "seconds is '1'"),
        ('{"id": "0", "answer": "red", "raw": 7}', "raw is 7"),
        ('{"id": "0", "answer": "red", "prompt": {}}', "prompt is {}"),
        ('{"id": ["0"], "answer": "red"}', "the id ['0']"),
        ('{"id": null, "answer": "red"}', "the id None"),
        ('{"id": "0", "answer": ["red"]}', "an answer that is a list"),
        ("[1]", "expected an object"),
        ('"text"', "expected an object"),
    ],
)
def test_f97_a_prediction_of_another_type_is_a_sentence(
    line: str, message: str, small: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "said.jsonl"
    path.write_text(line + "\n")
    source = small("docvqa").source
    arguments = ["eval", "score", "docvqa", "--predictions", str(path), "--data", str(source.data)]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "said.jsonl" in error and "Traceback" not in error


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"key": 1}', '{"id": "x", "key": "y", "nll": ["a"]}', "[" * 5000]
)
def test_f97_a_damaged_line_of_a_run_is_a_sentence(
    line: str, small: Callable, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "predictions-0-of-1.jsonl").write_text(line + "\n")
    data = ["--data", str(small("docvqa").source.data), "--out", str(tmp_path)]
    assert cli.main(["eval", "run", str(model), "docvqa", *data]) == 2
    error = capsys.readouterr().err
    assert "predictions-0-of-1.jsonl" in error and "Traceback" not in error


def test_f98_what_a_card_shows_is_text(
    said: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model's name and a title: no tag in Markdown or HTML, no link, no escape code; brackets are no markup."""
    model, out = "[/red]<script>alert(1)</script>|[x](http://x)\x1b[31m", str(tmp_path / "[bold]")
    assert cli.main(["eval", "score", *said("docvqa"), "--model", model, "--out", out]) == 0
    assert f"scores and answers in {out}" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert cli.main(["eval", "report", out, "--out", str(page), "--title", "<b>title"]) == 0
    table = page.with_suffix(".md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| DocVQA")]
    assert len(rows) == 1 and "&lt;script&gt;" in rows[0] and r"\[x\]" in rows[0]
    assert "<script>" not in table and "<b>" not in table and "\x1b" not in table
    text = page.read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
