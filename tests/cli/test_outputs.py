"""A command whose inputs cannot be read leaves nothing where its output was to be, not even an empty folder."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from PIL import Image as pillow

import qwenvl.cli as cli
from qwenvl.files import atomic

MODEL = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
STAGE = """
name = "trial"
image_size = {side}
sequence_length = 64
data = [{{ paths = ["{data}"] }}]
documents = 4
micro_documents = 2
bfloat16 = false
[optim]
peak_lr = 1e-4
final_lr = 1e-4
warmup_steps = 1
steps = 2
"""
NO_PEFT = "this needs the package peft, which is not installed; pip install 'qwenvl[hf]'."
FAILS = {
    "eval run broken x.jsonl --out new/e": "truncated",
    "eval run broken x.jsonl --out new/e --part 0/2": "truncated",
    "eval run MODEL x.jsonl --out new/e --dtype float7": "float7",
    "train stage.toml --init broken --out new/t": "truncated",
    "train stage.toml --init nowhere --out new/t": "nowhere is no folder",
    "train stage.toml --init MODEL --out new/t --device cuda:77": "cuda:77",
    "train none.toml --init MODEL --out new/t": "none.jsonl",
    "train odd.toml --init MODEL --out new/t": "does not divide",
    "train recipes/small --out new/t": "has no data",
    "finetune MODEL --data d.json --out x.jsonl": "--out x.jsonl is a file, where a folder is to be written",
    "finetune MODEL --data d.json --out new/f --train vision --device cpu": "no sample has an image",
    "quantize broken --to int8 --out new/q": "truncated",
    "convert broken new/c": "truncated",
    "convert MODEL x.jsonl": "x.jsonl is a file",
    "data clean x.jsonl a.png": "DST a.png is a file, where a folder is to be written",
    "data clean x.jsonl new/c --clip nowhere": "--clip nowhere is no folder",
    "data clean x.jsonl new/c --executor ray": "the executor `ray` needs the package ray",
    "data check d.json --model MODEL --lora": NO_PEFT,
    "finetune MODEL --data d.json --out new/f --lora": NO_PEFT,
    "plan stage.toml --model small --lora 8": NO_PEFT,
    "data read coco none.json --out new/r.jsonl": "none.json",
    "data mix none.jsonl --out new/m.jsonl": "there is no none.jsonl",
    "data inspect x.jsonl --tokenizer nowhere --out new/p.html": "nowhere is no folder",
}


@pytest.fixture
def typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[int, str]]:
    monkeypatch.chdir(tmp_path)
    pillow.new("RGB", (64, 64)).save("a.png")
    Path("x.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a red square"}) + "\n")
    turns = [{"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "a red square"}]
    Path("d.json").write_text(json.dumps([{"conversations": turns}] * 8))
    for name, side, data in (
        ("stage", 28, "x.jsonl"),
        ("none", 28, "none.jsonl"),
        ("odd", 27, "x.jsonl"),
    ):
        Path(f"{name}.toml").write_text(STAGE.format(side=side, data=data))

    def call(line: str) -> tuple[int, str]:
        status = cli.main([str(MODEL) if word == "MODEL" else word for word in line.split()])
        said, err = capsys.readouterr()
        return status, said + err

    return call


@pytest.mark.parametrize("line", FAILS)
def test_inputs_that_cannot_be_read_leave_nothing_behind(
    line: str, typed: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "needs the package" in FAILS[line]:
        monkeypatch.setitem(sys.modules, "peft", None)
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "qwenvl.integrations.peft", raising=False)
    if "broken" in line:
        shutil.copytree(MODEL, "broken")
        for file in Path("broken").glob("*.safetensors"):
            file.write_bytes(file.read_bytes()[:-1000])
    before = {*Path().rglob("[!.]*")}
    status, said = typed(line)
    assert status in (1, 2, 3) and FAILS[line] in said
    assert {*Path().rglob("[!.]*")} == before


def test_settings_of_a_run_that_never_began_are_forgotten(typed: Callable[[str], tuple[int, str]]) -> None:
    """`finetune` told one to name other parts with --train, and then refused them as those of another run."""
    line = "finetune MODEL --data d.json --out f --epochs 1 --device cpu --show-every 0"
    assert "no sample has an image" in typed(f"{line} --train vision")[1]
    Path("f").mkdir()
    Path("f/finetune.json").write_text("{}")  # as a kill before the first update leaves it
    assert typed(f"{line} --train llm")[0] == 0


def test_what_a_killed_command_left_of_its_file_is_removed_by_the_next(
    typed: Callable[[str], tuple[int, str]],
) -> None:
    """Nobody owns the folder: what a living process writes there is locked, and stays."""

    def killed() -> None:
        with atomic(Path("m.jsonl")) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=killed)
    process.start()
    process.join()
    (left,) = Path().glob(".m.jsonl.*.tmp")
    with atomic(Path("m.jsonl")) as file:
        file.write(b"[]")
        (other,) = {*Path().glob(".m.jsonl.*.tmp")} - {left}
        assert typed("data mix x.jsonl --out m.jsonl")[0] == 0
        assert [*Path().glob(".m.jsonl.*.tmp")] == [other]
