"""`qwenvl convert --to hf`: a folder for the hub, its card, and the way back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from huggingface_hub import metadata_load
from PIL import Image
from serving import api_over, serving, shown, text
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from qwenvl.chat import Assistant
from qwenvl.checkpoint.converting import convert
from qwenvl.checkpoint.hub import card, hub_id
from qwenvl.cli import main
from qwenvl.config import ModelConfig
from qwenvl.generate.engine import Engine, EngineConfig
from qwenvl.images import preprocess
from qwenvl.integrations.transformers import export
from qwenvl.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "qwen.tiktoken",
    "model.safetensors",
)
OFFICIAL_CARD = """---
language:
- zh
- en
tags:
- qwen
pipeline_tag: text-generation
inference: false
---

# Qwen-VL-Chat
"""


@pytest.fixture()
def official(tmp_path: Path) -> Path:
    (tmp_path / "official").mkdir()
    for name in FILES:
        shutil.copyfile(GOLDEN / name, tmp_path / "official" / name)
    (tmp_path / "official" / "README.md").write_text(OFFICIAL_CARD)
    (tmp_path / "official" / "LICENSE").write_text("Tongyi Qianwen LICENSE AGREEMENT\n")
    return tmp_path / "official"


def contents(place: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in place.iterdir()}


def matter(text: str, place: Path) -> Any:
    """The front matter as the hub reads it."""
    (place / "read.md").write_text(text)
    return metadata_load(place / "read.md")


def test_there_and_back_is_the_same_folder_bit_for_bit(official: Path, tmp_path: Path) -> None:
    export(official, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", to="official")
    export(tmp_path / "back", tmp_path / "again")
    assert contents(tmp_path / "hf") == contents(tmp_path / "again")
    kept = contents(tmp_path / "back")
    assert {
        name: data for name, data in kept.items() if name != "README.md" and name != "model.safetensors"
    } == {
        name: data
        for name, data in contents(official).items()
        if name != "README.md" and name != "model.safetensors"
    }
    convert(tmp_path / "back", tmp_path / "third", to="official")
    assert contents(tmp_path / "third") == kept


def test_everything_that_a_hub_folder_holds(official: Path, tmp_path: Path) -> None:
    assert main(["convert", str(official), str(tmp_path / "hf"), "--to", "hf"]) == 0
    found = contents(tmp_path / "hf")
    config = json.loads(found["config.json"])
    assert (config["model_type"], config["architectures"], config["dtype"]) == (
        "qwenvl", ["QwenVLForConditionalGeneration"], "float16"
    )  # fmt: skip
    generation = json.loads(found["generation_config.json"])
    assert (generation["chat_format"], generation["eos_token_id"], generation["pad_token_id"]) == (
        "chatml",
        300,
        300,
    )
    seen = json.loads(found["preprocessor_config.json"])
    assert seen["size"] == {"height": 56, "width": 56} and seen["resample"] == 3
    assert json.loads(found["processor_config.json"])["queries"] == 4
    assert found["LICENSE"].startswith(b"Tongyi") and "qwen.tiktoken" in found
    said: Any = metadata_load(tmp_path / "hf" / "README.md")
    assert said == {
        "language": ["zh", "en"], "tags": ["qwen"], "pipeline_tag": "image-text-to-text", "inference": False,
        "library_name": "qwenvl", "license": "other", "license_name": "as-in-the-file", "license_link": "LICENSE",
    }  # fmt: skip
    assert "# Qwen-VL-Chat" in found["README.md"].decode()


def test_ours_theirs_and_the_server_answer_from_it(official: Path, tmp_path: Path) -> None:
    export(official, tmp_path / "hf")
    image = GOLDEN / "images" / "a.png"
    wanted = Assistant.load(official, CPU).ask(image, "What is this?", max_new_tokens=6)
    ours = Assistant.load(tmp_path / "hf", CPU).ask(image, "What is this?", max_new_tokens=6)
    assert wanted.text and ours.text == wanted.text
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    parts = [{"type": "image", "path": str(image)}, {"type": "text", "text": "What is this?"}]
    given = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    written = model.generate(**given, max_new_tokens=6, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert processor.decode(written, skip_special_tokens=True) == wanted.text
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").core.imgpad == 516
    served = Assistant.load(tmp_path / "hf", CPU)
    asked = [shown(image.read_bytes()), text("What is this?")]
    with serving(api_over(Engine(served.model, EngineConfig(rows=1)), served)) as running:
        answer = running.chat(asked, max_tokens=6, temperature=0)
    assert answer.text == wanted.text


def test_preprocessing_in_others_words_is_ours(tmp_path: Path) -> None:
    """Read as CLIP's processors read these keys."""
    export("tiny", tmp_path / "hf")
    said = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    with Image.open(GOLDEN / "images" / "a.png") as opened:
        image = opened.convert("RGB").resize(tuple(said["size"].values()), said["resample"])
    levels = np.asarray(image, np.float32) * np.float32(said["rescale_factor"])
    pixels = (levels - np.array(said["image_mean"], np.float32)) / np.array(said["image_std"], np.float32)
    assert np.allclose(pixels.transpose(2, 0, 1), preprocess(GOLDEN / "images" / "a.png", 112), atol=1e-6)


def test_the_shipped_models_card(tmp_path: Path) -> None:
    export("tiny", tmp_path / "hf")
    text = (tmp_path / "hf" / "README.md").read_text()
    said: Any = metadata_load(tmp_path / "hf" / "README.md")
    assert said["license"] == "apache-2.0" and said["language"] == ["en"] and "base_model" not in said
    assert "## Scores" in text and (tmp_path / "hf" / "curves.svg").exists()
    assert not (tmp_path / "hf" / "MODEL_CARD.md").exists()


def made(folder: Path, origin: str | None = None) -> str:
    return card(folder, "mine\x1b[31m", ModelConfig(), "bfloat16", origin)


def test_what_nobody_said_is_said_to_be_unknown(tmp_path: Path) -> None:
    text = made(tmp_path)
    assert matter(text, tmp_path) == {
        "library_name": "qwenvl", "pipeline_tag": "image-text-to-text", "license": "unknown"
    }  # fmt: skip
    assert (
        "does not say where the weights come from, under which licence they are and which languages" in text
    )
    assert "\x1b" not in text and str(tmp_path) not in text
    known = matter(made(tmp_path, "Qwen/Qwen-VL-Chat"), tmp_path)
    assert known["base_model"] == "Qwen/Qwen-VL-Chat"


@pytest.mark.parametrize(
    "text, license, body",
    [
        ("---\nlicense: mit\n---\n# A\n", "mit", "# A"),
        ("---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n# A\r\n", "mit", "# A"),
        ("---\n# a comment\nlicense: mit\n---\n", "mit", "# mine"),
        ("---\n---\n# A\n", "unknown", "# A"),
        ("# A\n\n---\nlicense: mit\n---\n", "unknown", "license: mit"),
        ("---\nno end\n", "unknown", "no end"),
        ("", "unknown", "# mine"),
    ],
)
def test_cards_of_strangers(tmp_path: Path, text: str, license: str, body: str) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    once = made(tmp_path)
    assert matter(once, tmp_path)["license"] == license and body in once
    (tmp_path / "README.md").write_text(once)
    assert made(tmp_path) == once


def test_a_card_in_another_encoding_keeps_its_bytes(official: Path, tmp_path: Path) -> None:
    (official / "README.md").write_bytes("# Modèle\n".encode("latin-1"))
    export(official, tmp_path / "hf")
    assert "# Modèle\n".encode("latin-1") in (tmp_path / "hf" / "README.md").read_bytes()


def test_paths_are_no_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert hub_id("Qwen/Qwen-VL-Chat") == "Qwen/Qwen-VL-Chat"
    assert [hub_id(each) for each in ("runs/mine", "tiny", tmp_path, "a/b/c", "../x")] == [None] * 5
