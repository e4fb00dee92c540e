"""The three stages of recipes/small from real shards, with a shrunken model that starts from OpenCLIP and Qwen-7B."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image as pillow
from safetensors.torch import load_file, save_file

import qwenvl.cli as cli
from qwenvl import presets
from qwenvl.chat import Assistant
from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint import names
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.records import OcrPage, PlainText, Question, Referring, to_json
from qwenvl.data.tars import write_tar
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.streams import vocabulary_texts
from qwenvl.data.toy.worlds import scene
from qwenvl.markup import Box, Image, Quad
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.log import read_log
from qwenvl.train.toy import initialise_narrow_

RECIPES = Path(__file__).parents[2] / "recipes"
PAIRS = 24
ROWS = (
    ("1-pretraining", "pairs", 1.0, ""),
    ("2-multitask", "pages/*.tar", 2.0, ""),
    ("2-multitask", "vqa.jsonl", 1.0, ""),
    ("2-multitask", "phrases.jsonl", 1.0, "refer"),
    ("2-multitask", "phrases.jsonl", 1.0, "describe"),
    ("2-multitask", "text.jsonl", 1.0, ""),
    ("3-finetuning", "dialogues.json", 1.0, ""),
)
"""Stage, path, weight, format."""


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(render(scene(5, number), 160)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards as the data commands write them, and the file that says which stage reads what."""
    root = tmp_path_factory.mktemp("data")
    with write_tar(root / "pairs" / "0.tar") as tar:
        for number in range(PAIRS):
            tar.add(f"{number:05}.jpg", jpeg(number) if number != 4 else jpeg(4)[:900])
            tar.add(f"{number:05}.txt", f"an image of scene {number}".encode())
    with write_tar(root / "pages" / "0.tar") as tar:
        for number in range(8):
            quad = Quad(((1, 1), (900, 1), (900, 99), (1, 99)), label=f"LINE {number}")
            page = OcrPage(image=Image("p.jpg"), lines=(quad,) * (41 if number == 3 else 1))
            tar.add(f"{number}.jpg", jpeg(number))
            tar.add(f"{number}.json", to_json(page).encode())
    (root / "photos").mkdir()
    shown = [Image(f"photos/{number}.jpg") for number in range(8)]
    for number, image in enumerate(shown):
        (root / str(image.source)).write_bytes(jpeg(number))
    records = [Question(image=image, question="What is it?", answer="a scene") for image in shown]
    phrases = [Referring(image=image, phrase="the thing", boxes=(Box(1, 2, 500, 600),)) for image in shown]
    texts = [PlainText(text=f"words {number} without an image") for number in range(8)]
    for name, message in (("vqa", records), ("phrases", phrases), ("text", texts)):
        (root / f"{name}.jsonl").write_text("\n".join(map(to_json, message)))
    turns = [
        [("user", f"Picture 1: <img>{each.source}</img>\nWhat is it?"), ("assistant", "A scene.")]
        for each in shown
    ]
    dialogues = [{"conversations": [{"from": who, "value": what} for who, what in each]} for each in turns]
    (root / "dialogues.json").write_text(json.dumps(dialogues))
    (root / "data.toml").write_text(
        "".join(
            f'[[{stage}.data]]\npaths = ["{path}"]\nweight = {weight}\nformat = "{format}"\n'
            for stage, path, weight, format in ROWS
        )
    )
    return root


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QwenVL:
    """A model whose parts stand in `openclip` and `qwen`, in the forms of these releases; its preset is `shrunk`."""
    tokenizer = Tokenizer.train(vocabulary_texts(20), 50)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=2, heads=2, mlp_width=64, image_size=224),
        adapter=AdapterConfig(queries=16, heads=2),
        llm=LLMConfig(vocab_size=tokenizer.n_vocab, hidden=32, layers=2, heads=2, mlp_width=64),
        imgpad_id=tokenizer.imgpad,
    )
    monkeypatch.setitem(presets.PRESETS, "shrunk", lambda: config)  # type: ignore[arg-type]
    model = QwenVL(config)
    initialise_narrow_(model, torch.Generator().manual_seed(7))
    qwen, clip = (
        {},
        {"visual.class_embedding": torch.zeros(32), "visual.conv1.weight": model.vision.patch_embed.weight},
    )
    clip["visual.positional_embedding"] = torch.cat([torch.zeros(1, 32), model.vision.position])
    for name, tensor in model.state_dict().items():
        for table, stored in ((names.QWEN_7B, qwen), (names.OPENCLIP, clip)):
            if (entry := names.foreign(name, table)) is not None:
                stored[entry[0]] = entry[1](tensor, config)
    for place, file, stored in (
        ("qwen", "model.safetensors", qwen),
        ("openclip", "open_clip_model.safetensors", clip),
    ):
        (tmp_path / place).mkdir()
        save_file(
            {name: each.detach().contiguous() for name, each in stored.items()}, tmp_path / place / file
        )
    (tmp_path / "qwen/config.json").write_text(json.dumps({"num_attention_heads": 2}))
    tokenizer.save(tmp_path / "qwen")
    (tmp_path / "qwen/generation_config.json").write_text('{"chat_format": "raw"}')
    recipe = Path(shutil.copytree(RECIPES / "small", tmp_path / "recipe"))
    (recipe / "recipe.toml").write_text('preset = "shrunk"\nvision = "nobody/nothing"\n')
    return model


SHORT = (
    "--stage.documents", "8", "--stage.micro-documents", "4", "--stage.window", "8", "--stage.workers", "0",
    "--stage.bfloat16", "False", "--optim.warmup-steps", "1", "--device", "cpu",
)  # fmt: skip


def test_three_stages_from_shards(
    data: Path, parts: QwenVL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    starts = ("--init-vision", tmp_path / "openclip", "--init-llm", tmp_path / "qwen")
    typed = (
        "train",
        tmp_path / "recipe",
        "--out",
        run,
        "--data",
        data / "data.toml",
        *starts,
        "--optim.steps",
        "3",
        *SHORT,
    )
    assert cli.main([str(word) for word in typed]) == 0
    message = capsys.readouterr()
    assert message.out.strip() == str(run / "3-finetuning/model")
    assert "left out: 1 damaged image, such as 0.tar, 00004.jpg: A damaged image" in message.err
    assert "left out: 1 over-long, such as 0.tar, 3: " in message.err

    start = load_file(run / "start/model.safetensors")
    for name, tensor in parts.state_dict().items():
        assert name.startswith("adapter.") or torch.equal(start[name], tensor), "the parts start pre-trained"
    assert not torch.equal(start["adapter.query"], parts.adapter.query)

    sizes = [
        checkpoint.read_config(run / name).vision.image_size
        for name in ("start", "1-pretraining/model", "2-multitask/model")
    ]
    assert sizes == [224, 112, 224], "each model says at which resolution it learned"
    stage = json.loads((run / "2-multitask/stage.json").read_text())
    assert (stage["optim"]["steps"], stage["optim"]["peak_lr"], stage["packing"]) == (3, 3e-4, "interleaved")
    assert [row["format"] for row in stage["data"]] == ["", "", "refer", "describe", ""]
    assert stage["data"][0]["paths"] == [str(data / "pages/*.tar")]
    for name in ("1-pretraining", "2-multitask", "3-finetuning"):
        lines = read_log(run / name / "log.jsonl")
        assert len(lines) == 3 and all(0 < line["loss"] < 20 and line["tokens"] > 0 for line in lines)
    prompt_formats = [
        Assistant.load(run / name / "model", Runtime.detect(device="cpu")).prompt_format.chat_format
        for name in ("2-multitask", "3-finetuning")
    ]
    assert prompt_formats == ["raw", "chatml"], "a base model until it has learned dialogues"
    shown = sum(line["images"] for line in read_log(run / "1-pretraining/log.jsonl"))
    assert shown == PAIRS - 1, "every pair once, but for the damaged one"


def test_two_processes_read_and_learn_what_one_does(data: Path, parts: QwenVL, tmp_path: Path) -> None:
    """Stage 2 at twice the resolution of its start, one source, rows with and without images on either rank."""
    model = QwenVL(parts.config.at(112))
    model.load_state_dict(parts.state_dict())
    checkpoint.save(model, tmp_path / "init", sidecars=tmp_path / "qwen")
    for processes in (1, 2):
        where = (
            "--init",
            tmp_path / "init",
            "--data",
            data / "data.toml",
            "--out",
            tmp_path / str(processes),
        )
        stage = RECIPES / "small/2-multitask.toml"
        typed = ("train", stage, *where, "--processes", processes, "--optim.steps", "2", *SHORT)
        assert cli.main([str(word) for word in typed]) == 0
    logs = [read_log(tmp_path / name / "2-multitask/log.jsonl") for name in ("1", "2")]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], rel=1e-5)
    for count in ("tokens", "images"):
        assert [line[count] for line in logs[0]] == [line[count] for line in logs[1]]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("recipes/small", "--data", "x.jsonl"), "--data x.jsonl is for one stage; a recipe needs a file"),
        (("recipes/small",), "stage 1-pretraining has no data"),
        (("recipes/small", "--data", "{data}/data.toml"), "the recipe needs the official vocabulary; give"),
        (("recipes/small", "--data", "{other}"), "the file given has values of a stage '4-more'; the stages of"),
        (("recipes/small/2-multitask.toml", "--init", "tiny", "--init-llm", "x"), "start a recipe; a single stage"),
        (("recipes/tiny", "--optim.steps", "3"), "warmup_steps is 100 of 3 steps; expected 0 up to all of them"),
    ],
)  # fmt: skip
def test_what_cannot_start_says_why(
    typed: tuple[str, ...],
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    (tmp_path / "other.toml").write_text('[["4-more".data]]\npaths = ["a"]\n')
    words = [word.format(data=data, other=tmp_path / "other.toml") for word in typed]
    assert cli.main(["train", *words, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/start").exists()
