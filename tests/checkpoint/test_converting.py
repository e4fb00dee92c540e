"""`qwenvl convert`: what is written is read back, official settings come back as they were, licences travel."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenvl.checkpoint import converting, folder, weights
from qwenvl.checkpoint.converting import convert
from qwenvl.checkpoint.official import TOKENIZER
from qwenvl.parity import models
from qwenvl.parity.fixture import Fixture

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "qwen.tiktoken")


@pytest.fixture()
def official(tmp_path: Path) -> Path:
    place = tmp_path / "official"
    place.mkdir()
    for name in (*SETTINGS, "model.safetensors"):
        shutil.copyfile(GOLDEN / name, place / name)
    return place


@pytest.mark.parametrize("to", ["qwenvl", "official"])
@pytest.mark.parametrize("damage", ["bit", "sign of zero", "config"])
def test_what_reads_back_otherwise_is_not_shown(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, damage: str
) -> None:
    write = converting.write_tensors

    def damaged(place: Path, stored: Any) -> None:
        write(place, stored)
        tensors = load_file(place / "model.safetensors")
        last = sorted(name for name in tensors if name.endswith(".weight"))[-1]
        tensors[last].view(-1)[0] = tensors[last].view(-1)[0] * 2 + 1 if damage == "bit" else -0.0
        save_file(tensors, place / "model.safetensors")

    tensors = load_file(official / "model.safetensors")
    for name in tensors:
        tensors[name].view(-1)[0] = 0.0
    save_file(tensors, official / "model.safetensors")
    if damage == "config":
        write_settings = converting._write_settings

        def another(source: Path, place: Path, *rest: Any) -> None:
            write_settings(source, place, *rest)
            text = (place / "config.json").read_text()
            (place / "config.json").write_text(text.replace(": 64,", ": 32,", 1).replace("10000", "10001"))

        monkeypatch.setattr(converting, "_write_settings", another)
    else:
        monkeypatch.setattr(converting, "write_tensors", damaged)
    with pytest.raises(ValueError, match=r"reads back otherwise: .* differs, so nothing was left of it"):
        convert(official, tmp_path / "new", to=to)
    assert [each.name for each in tmp_path.iterdir()] == ["official"]


def test_the_certificate_looks_at_the_export(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cases.json", "meta.json"):
        shutil.copyfile(GOLDEN / name, official / name)
    fixture = Fixture(official)
    assert models._changed_by_export(fixture) == []
    stored = weights.stored_tensors(official)
    some = "transformer.h.0.attn.c_attn.weight"
    half = weights.Stored(stored[some].shape, torch.float32, lambda: stored[some].read().float())
    changed = {**stored, some: half, "more": half}
    monkeypatch.setattr(models, "stored_tensors", lambda _: changed)
    assert models._changed_by_export(fixture) == ["more", some]


def test_a_model_without_official_files_gets_those_of_the_release(official: Path, tmp_path: Path) -> None:
    (official / "tokenizer_config.json").unlink()
    convert(official, tmp_path / "ours")
    (tmp_path / "ours" / "official_config.json").unlink()
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text()) == TOKENIZER
    assert folder.read_config(tmp_path / "back") == folder.read_config(official)
    assert {each.name for each in (tmp_path / "back").iterdir()} == {*SETTINGS, "model.safetensors"}


def test_licences_and_the_card_travel(official: Path, tmp_path: Path) -> None:
    words = {"LICENSE": "a", "LICENSE.txt": "b", "NOTICE": "c", "README.md": "d", "COPYING.LESSER": "e",
             "ATTRIBUTION.md": "f"}  # fmt: skip
    for name, text in {**words, "notes.txt": "mine", "modeling_qwen.py": "import os"}.items():
        (official / name).write_text(text)
    (official / "LICENSES").mkdir()
    convert(official, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    for place in ("ours", "back"):
        found = {each.name: each for each in (tmp_path / place).iterdir()}
        assert {name: found[name].read_text() for name in words} == words
        assert not {"notes.txt", "modeling_qwen.py", "LICENSES"} & found.keys()


@pytest.mark.parametrize("there", [True, False])
def test_behind_a_link_the_folder_is_written_that_it_leads_to(
    official: Path, tmp_path: Path, there: bool
) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    link.symlink_to(real)
    for _ in range(2 if there else 1):
        convert(official, link)
    assert link.is_symlink() and (real / "model.safetensors").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "link", "official"]
    assert [each.name for each in (tmp_path / "disk").iterdir()] == ["real"]


def test_a_link_to_itself_is_refused(official: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((ValueError, OSError)):
        convert(official, tmp_path / "loop")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["loop", "official"]


@pytest.mark.parametrize("held", [("config.json",), ("README.md", "LICENSE"), ("config.json", "README.md")])
def test_a_folder_without_weights_is_no_model_to_replace(official: Path, tmp_path: Path, held: Any) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in held:
        (project / name).write_text("{}")
    with pytest.raises(ValueError, match=r"project exists and holds .* but no weights; give a new folder"):
        convert(official, project)
    assert sorted(each.name for each in project.iterdir()) == sorted(held)
