"""`train` and `plan` as they are typed: names that are found from anywhere, options that mean something."""

import json
import shutil
from pathlib import Path

import pytest

from qwenvl import presets
from qwenvl.cli import main
from qwenvl.files import owned
from qwenvl.train import recipe
from qwenvl.train.log import read_log
from qwenvl.train.plan import Assumptions, plan
from qwenvl.train.stages import StageConfig

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of a user whose qwenvl came from a wheel: its recipes stand inside the package."""
    package = tmp_path / "site-packages" / "qwenvl"
    shutil.copytree(RECIPES, package / "recipes")
    monkeypatch.setattr(recipe, "files", lambda _: package)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return package / "recipes"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence with which a command refuses."""
    assert main([str(word) for word in words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("qwenvl: error: ") and len(printed.splitlines()) == 1
    return printed


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("tiny", "tiny"),
        ("recipes/tiny", "tiny"),
        ("recipes/tiny/2-multitask.toml", "tiny/2-multitask.toml"),
        ("small/3-finetuning", "small/3-finetuning.toml"),
    ],
)
def test_f10_recipes_are_found_from_a_wheel(installed: Path, given: str, found: str) -> None:
    assert recipe.find_recipe(given) == installed / found
    Path("tiny").mkdir()
    assert recipe.find_recipe("tiny") == Path("tiny"), "what is here goes first"


def test_f10_a_mistyped_name_is_told_what_there_is(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "plan"):
        printed = said(capsys, command, "recipes/tinny")
        assert "no recipe folder or stage file recipes/tinny" in printed and "did you mean tiny?" in printed
        assert "recipes/demo, recipes/drawings, recipes/qwen_vl_7b, recipes/small, recipes/tiny" in printed
    printed = said(capsys, "train", "recipes/tiny/2-multitusk.toml", "--init", "tiny")
    assert "1-pretraining.toml, 2-multitask.toml" in printed and "did you mean 2-multitask.toml?" in printed
    Path("empty").mkdir()
    assert "empty has no recipe.toml" in said(capsys, "train", "empty")


def test_f10_a_whole_recipe_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipes/small", "--memory", "40", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == ["1-pretraining", "2-multitask", "3-finetuning"]
    assert main(["plan", "recipes/small", "--memory", "2"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("does not fit") == 3 and "== 2-multitask" in printed.out


def test_f46_documents_that_fill_a_row_are_one_row() -> None:
    """Four documents of a quarter of a row each, as benchmarks/gpu.py packs them; and not fewer rows than needed."""
    stage = StageConfig.read(RECIPES / "small" / "2-multitask.toml")
    text = stage.sequence_length // 4 - 64 - 2  # `small` has 64 queries
    given = Assumptions(text_tokens=float(text), memory=1000.0)
    for documents, rows in ((4, 1), (5, 2), (40, 10), (400, 103)):
        sized = stage.changed({"documents": documents, "micro_documents": documents, "window": 0})
        assert plan(sized, presets.small(), given).rows == rows


def test_f88_a_preset_is_a_name_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RECIPES / "small" / "1-pretraining.toml", tmp_path)
    for name in ("dataclass", "replace", "__name__", "ModelConfig"):
        (tmp_path / "recipe.toml").write_text(f'preset = "{name}"\n')
        assert f"the preset is '{name}'; expected one of qwen_vl_7b, small" in said(capsys, "train", tmp_path)


def test_f41_data_takes_the_place_of_the_toy_world(
    start: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it comes as shards or as a file of rows."""
    stage = RECIPES / "tiny" / "2-multitask.toml"
    rows = tmp_path / "data.toml"
    rows.write_text(f'[[2-multitask.data]]\npaths = ["{shard}"]\n[other]\nseed = 1\n')
    sizes = [
        "--stage.image-size",
        56,
        "--stage.documents",
        4,
        "--stage.micro-documents",
        4,
        "--optim.steps",
        2,
    ]
    sizes += [
        "--stage.window",
        0,
        "--stage.sequence-length",
        128,
        "--optim.warmup-steps",
        0,
        "--device",
        "cpu",
    ]
    for given, name in ((shard, "shards"), (rows, "rows")):
        words = ["train", stage, "--init", start, "--data", given, "--out", tmp_path / name, *sizes]
        assert main(list(map(str, words))) == 0
        (run,) = (tmp_path / name).iterdir()
        kept = json.loads((run / "stage.json").read_text())
        assert [row["paths"] for row in kept["data"]] == [[str(shard)]]
        assert {source for line in read_log(run / "log.jsonl") for source in line["losses"]} == {"caption"}
        assert [line["step"] for line in read_log(run / "log.jsonl")] == [1, 2], "as TensorBoard counts"
    rows.write_text("[3-finetuning]\nseed = 1\n")
    printed = said(capsys, "train", stage, "--init", start, "--data", rows, "--out", tmp_path / "none")
    assert "says nothing about stage 2-multitask; it has 3-finetuning" in printed


def test_f44_a_place_that_cannot_be_written_names_the_option(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root every folder can be written, so the refusal is made here."""
    out = tmp_path / "locked" / "runs"

    def refused(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "locked"))

    monkeypatch.setattr(Path, "mkdir", refused)
    printed = said(capsys, "train", RECIPES / "tiny" / "2-multitask.toml", "--init", start, "--out", out)
    assert (
        f"cannot write to {out} (permission denied: {tmp_path / 'locked'}); name another place with --out"
        in printed
    )


def test_the_place_that_a_command_chooses_itself_names_the_option_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(Path, "mkdir", refused)
    words = [
        "eval",
        "run",
        "tiny",
        "toyworld-vqa",
        "--limit",
        "1",
        "--device",
        "cpu",
        "--prompt-format",
        "chatml",
    ]
    assert "cannot write to runs (permission denied: runs); name another place with --out" in said(
        capsys, *words
    )


def test_options_that_would_do_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    stage = RECIPES / "small" / "2-multitask.toml"
    once = "adding up gradients once a step needs shard = optimizer or full"
    assert once in said(capsys, "train", stage, "--init", "tiny", "--reduce-once-per-step")
    assert once in said(capsys, "plan", stage, "--shard", "none", "--reduce-once-per-step")
    assert "is for one stage file, which needs it" in said(capsys, "train", "tiny", "--init", "tiny")
    assert "adapters are not cut" in said(capsys, "plan", stage, "--lora", 4, "--tensor", 2, "--gpus", 2)


@pytest.mark.parametrize("name", ["../..", "/etc/qwenvl", "a/b", "", ".hidden", "start"])
def test_f82_f92_a_stage_is_a_folder_of_its_run_and_no_other_place(
    start: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (RECIPES / "tiny" / "2-multitask.toml").read_text().replace('"2-multitask"', json.dumps(name))
    (tmp_path / "stage.toml").write_text(text)
    printed = said(
        capsys, "train", tmp_path / "stage.toml", "--init", start, "--out", tmp_path / "deep" / "run"
    )
    assert "name" in printed
    assert {each.name for each in tmp_path.iterdir()} <= {"stage.toml", "deep"}


def test_two_runs_do_not_share_a_folder(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with owned(tmp_path / "run"):
        printed = said(
            capsys, "train", RECIPES / "tiny/2-multitask.toml", "--init", start, "--out", tmp_path / "run"
        )
    assert "is being written by process" in printed


def test_stages_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """10-last came before 2-next, because names were sorted as texts."""
    stages = {"10-last", "2-next", "0b-side", "0a-first", "3-then"}
    for name in stages:
        text = (RECIPES / "tiny" / "2-multitask.toml").read_text()
        (tmp_path / f"{name}.toml").write_text(text.replace("2-multitask", name))
    found = [stage.name for stage in recipe.stages_of(tmp_path)]
    assert found == ["0a-first", "0b-side", "2-next", "3-then", "10-last"]


def test_a_stage_that_is_done_says_what_it_was_done_with(
    start: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what was left out is told of the stages that were asked for alone."""
    sizes = "--stage.image-size 56 --stage.documents 4 --stage.micro-documents 4 --stage.window 0"
    words = ["train", str(RECIPES / "tiny" / "2-multitask.toml"), "--init", str(start), "--data", str(shard)]
    words += ["--out", str(tmp_path / "run"), "--optim.warmup-steps", "0", "--device", "cpu", *sizes.split()]
    assert main([*words, "--optim.steps", "2"]) == 0
    beside = tmp_path / "run" / "1-pretraining"
    beside.mkdir()
    line = {"kind": "over-long", "shard": "x.jsonl", "sample": "x.jsonl, byte 0", "detail": "9 tokens, 8 fit"}
    (beside / "left_out-000.jsonl").write_text(json.dumps(line) + "\n")
    capsys.readouterr()
    assert main([*words, "--optim.steps", "2", "--stage.show-every", "5"]) == 0
    assert capsys.readouterr().err == "", "what changes nothing of what is learned may be another"
    assert main([*words, "--optim.steps", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/run/2-multitask/model\n"
    assert (
        "is done with other values than are asked for (optim.steps 2, now 3) and stays as it is"
        in printed.err
    )
    assert len(printed.err.splitlines()) == 1


def test_a_file_of_a_recipe_that_is_no_stage(capsys: pytest.CaptureFixture[str]) -> None:
    given = RECIPES / "tiny" / "recipe.toml"
    assert f"recipe.toml describes no stage; give its folder {given.parent}" in said(capsys, "train", given)
    printed = said(capsys, "train", RECIPES / "tiny/2-multitask.toml", "--init", "tiny", "--optim.steps", 5)
    assert "lower it (--optim.warmup-steps) or give more steps" in printed
