"""Folders that are not whole, at the doors of the command line: one sentence each, and nothing written."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from broken_folders import (
    CONFIG,
    OTHER_VOCABULARY,
    VOCABULARY,
    WEIGHTS,
    WEIGHTS_BROKEN,
    another_qwen,
    another_vocabulary,
    quantised,
)
from safetensors.torch import load_file

from qwenvl.checkpoint import placing
from qwenvl.checkpoint.folder import resolve
from qwenvl.cli import main
from qwenvl.integrations import onnx

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"

DOORS: Mapping[str, Callable[[str, str], list[str]]] = {
    "ask": lambda model, out: ["ask", model, "Hello"],
    "chat": lambda model, out: ["chat", model],
    "serve": lambda model, out: ["serve", model, "--port", "0"],
    "convert": lambda model, out: ["convert", model, out],
    "convert --to hf": lambda model, out: ["convert", model, out, "--to", "hf"],
    "convert --to onnx": lambda model, out: ["convert", model, out, "--to", "onnx"],
    "quantize": lambda model, out: ["quantize", model, "--to", "int8", "--out", out],
}
"""Command -> its words for a model folder and a folder to write."""

WITHOUT_WORDS = ("convert --to onnx",)
"""Doors that need no vocabulary."""


def another_family(model_type: str) -> Callable[[Path], None]:
    def breaks(folder: Path) -> None:
        shutil.copytree(resolve("tiny"), folder)
        (folder / CONFIG).write_text(json.dumps({"model_type": model_type, "hidden_size": 64}))

    breaks.__name__ = model_type
    return breaks


def index_out_of_the_folder(folder: Path) -> None:
    shutil.copytree(resolve("tiny"), folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder.parent / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "../secret.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


FAULTS: Mapping[Callable[[Path], None], str] = {
    **WEIGHTS_BROKEN,
    another_qwen: "has model_type 'qwen'; expected 'qwenvl', or 'qwen' with 'visual' .* not read here",
    another_family("qwen2_vl"): "has model_type 'qwen2_vl'; expected .* not read here",
    another_family("qwen2"): "has model_type 'qwen2'; expected .* not read here",
    index_out_of_the_folder: r"'\.\./secret\.safetensors' holds a slash",
}


def refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2, words
    *before, message = capsys.readouterr().err.splitlines()
    assert all(line.startswith("qwenvl: reading ") for line in before), before
    assert message.startswith("qwenvl: error: "), message
    assert re.search(said, message), message


@pytest.mark.parametrize("fault", FAULTS, ids=lambda each: each.__name__)
def test_what_is_not_whole_is_one_sentence_at_every_door(
    fault: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx, "NEEDED", ())
    fault(tmp_path / "model")
    for words in DOORS.values():
        refused(words(str(tmp_path / "model"), str(tmp_path / "out")), FAULTS[fault], capsys)
    assert {each.name for each in tmp_path.iterdir()} <= {"model", "secret.safetensors"}


def test_the_vocabulary_of_another_model_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    another_vocabulary(tmp_path / "model")
    for door, words in DOORS.items():
        if door not in WITHOUT_WORDS:
            refused(words(str(tmp_path / "model"), str(tmp_path / "out")), OTHER_VOCABULARY, capsys)
    (tmp_path / "d.json").write_text("[]")
    for line in (
        "data check FILE --model",
        "data inspect FILE --tokenizer",
        "finetune --data FILE --device cpu",
    ):
        typed = line.replace("FILE", str(tmp_path / "d.json")).split()
        refused([*typed, str(tmp_path / "model")], OTHER_VOCABULARY, capsys)
    (tmp_path / "d.json").unlink()
    (tmp_path / "model" / VOCABULARY).unlink()
    for door in ("ask", "chat", "serve", "convert --to hf"):
        typed = DOORS[door](str(tmp_path / "model"), str(tmp_path / "out"))
        refused(typed, rf"no vocabulary at {tmp_path}/model/qwen\.tiktoken", capsys)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_the_folder_of_a_run_names_its_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `--out` of finetune and train named is typed instead of the model below it."""
    shutil.copytree(resolve("tiny"), tmp_path / "mine" / "model")
    shutil.copytree(resolve("tiny"), tmp_path / "run" / "1-pretraining" / "model")
    (tmp_path / "photos").mkdir()
    for words in DOORS.values():
        for run, model in (("mine", "mine/model"), ("run", "run/1-pretraining/model")):
            said = rf"{run} is the folder of a run and no model; give a model of it: {tmp_path}/{model}\."
            refused(words(str(tmp_path / run), str(tmp_path / "out")), said, capsys)
        none = r"photos/config\.json does not exist; is .*photos the right folder|photos has no weights; expected"
        refused(words(str(tmp_path / "photos"), str(tmp_path / "out")), none, capsys)


def test_what_is_quantised_and_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised(tmp_path / "model", "int8")
    given = (str(tmp_path / "model"), str(tmp_path / "out"))
    refused(DOORS["quantize"](*given), "is quantised already", capsys)
    monkeypatch.setattr(placing, "free_memory", lambda device: 1_000_000)
    for door in ("ask", "chat", "serve"):
        refused(DOORS[door](*given), r"needs 0\.0 GB in \w+ and 0\.0 GB are free on cpu", capsys)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fault", ["truncated", "another model"])
def test_a_broken_fixture_fails_its_certificate(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through every door of our own; the sentence stands in the certificate, and the status is 1."""
    shutil.copytree(GOLDEN, tmp_path / "model")
    weights, config = tmp_path / "model" / WEIGHTS, tmp_path / "model" / CONFIG
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "qwen2_vl"}))
    said = "is truncated or no weight file" if fault == "truncated" else "has model_type 'qwen2_vl'"
    for door in ([], ["--through", "int8"]):
        assert main(["parity", str(tmp_path / "model"), "--json", *door]) == 1
        assert said in capsys.readouterr().out
