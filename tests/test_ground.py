"""What stands behind transparency: nothing for official models, what it learned on for a checkpoint that says so."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow

from qwenvl.chat import Assistant
from qwenvl.checkpoint.converting import convert
from qwenvl.checkpoint.folder import resolve
from qwenvl.cli import main
from qwenvl.data.stream.images import square
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.evaluation.asking import Asker
from qwenvl.generate.engine import Engine, Prompt
from qwenvl.images import WHITE, normalise, over, preprocess, rgb
from qwenvl.markup import Image
from qwenvl.options import PromptFormat
from qwenvl.runtime import Runtime
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import open_upload
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import recipe
from qwenvl.train.data import batches
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.stages import OptimConfig, StageConfig

SAYS = {"image_ground": [255, 255, 255]}


@pytest.fixture
def icon(tmp_path: Path) -> Path:
    """A red square in the middle of what is transparent, under which the file has black."""
    image = pillow.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 10, 30, 30))
    image.save(tmp_path / "icon.png")
    return tmp_path / "icon.png"


@pytest.fixture
def on_white(tmp_path: Path) -> Path:
    """`tiny`, with the word that it learned on white."""
    folder = tmp_path / "on_white"
    shutil.copytree(resolve("tiny"), folder)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **SAYS}))
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pixels that an engine is given."""
    given: list[Any] = []
    real = Engine.add

    def add(self: Engine, prompt: Prompt, *rest: Any, **more: Any) -> int:
        given.extend(np.asarray(each) for each in prompt.pixels)
        return real(self, prompt, *rest, **more)

    monkeypatch.setattr(Engine, "add", add)
    return given


def expected(icon: Path, white: bool) -> Any:
    image = pillow.open(icon)
    return preprocess(over(image, WHITE) if white else image.convert("RGB"), 112)


@pytest.mark.parametrize("white", [False, True])
def test_every_way_of_asking_shows_what_the_checkpoint_learned_on(
    white: bool, icon: Path, on_white: Path, seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(on_white if white else resolve("tiny"))
    short = ["--max-new-tokens", "1", "--device", "cpu"]
    assert main(["ask", model, str(icon), "What?", "--out", str(tmp_path / "out.png"), *short]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(f"What?\n/image {icon}\nWhat?\n"))
    assert main(["chat", model, str(icon), *short]) == 0
    assistant = Assistant.load(model, device="cpu")
    for given in (icon, icon.read_bytes(), np.asarray(pillow.open(icon))):
        assistant.ask(given, "What?", max_new_tokens=1)
    assert len(seen) == 7, "of the dialogue the second question has both images"
    assert all(np.array_equal(each, expected(icon, white)) for each in seen)
    corner = pillow.open(tmp_path / "out.png").convert("RGB").getpixel((0, 0))
    assert corner == ((255, 255, 255) if white else (0, 0, 0)), "what is drawn on is what was seen"


@pytest.mark.parametrize("white", [False, True])
def test_evaluation_and_server_show_it_too(white: bool, icon: Path, on_white: Path, tmp_path: Path) -> None:
    folder = on_white if white else resolve("tiny")
    assistant = Assistant.load(folder, device="cpu")
    ground = assistant.prompt_format.ground
    assert np.array_equal(Asker(assistant)._read(Image(icon)), expected(icon, white))
    upload = open_upload(icon.read_bytes(), Limits(), side=112, ground=ground)
    assert np.array_equal(preprocess(upload.image, 112), expected(icon, white))
    convert(folder, tmp_path / "converted")
    assert PromptFormat.read(tmp_path / "converted").ground == ground, "it travels with the weights"


@pytest.mark.parametrize("white", [False, True])
def test_transformers_show_it_too(white: bool, icon: Path, on_white: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from qwenvl.integrations.huggingface.processor import QwenVLProcessor

    processor = QwenVLProcessor.from_pretrained(on_white if white else resolve("tiny"))
    processor.save_pretrained(tmp_path / "saved")
    for each in (processor, QwenVLProcessor.from_pretrained(tmp_path / "saved")):
        pixels = each(text="<img></img>What?", images=[pillow.open(icon)], return_tensors="np")[
            "pixel_values"
        ]
        assert np.array_equal(pixels[0], expected(icon, white))


@pytest.mark.parametrize("white", [False, True])
def test_training_learns_on_it_and_its_model_says_so(
    white: bool, icon: Path, on_white: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by the stage, or by the model that it starts from."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a red square", "image": "icon.png"}) + "\n")
    optim = OptimConfig(peak_lr=1e-3, final_lr=1e-3, warmup_steps=0, steps=1)
    stage = StageConfig(
        name="icons", image_size=112, sequence_length=128, documents=1, micro_documents=1, optim=optim,
        data=(SourceConfig(paths=(str(rows),)),), ground=(255, 255, 255) if white else (),
    )  # fmt: skip
    levels = normalise(batches(stage, Tokenizer.load(resolve("tiny")), 36)([0]).images[0].source)  # type: ignore[arg-type]
    assert np.array_equal(levels, expected(icon, white))
    begun: list[StageConfig] = []
    monkeypatch.setattr(recipe, "train", lambda model, tokenizer, stage, *_, **__: begun.append(stage))
    runtime = Runtime.detect(device="cpu", dtype="float32")
    for name, init, asked in (
        ("said", resolve("tiny"), stage),
        ("kept", on_white, stage.changed({"ground": ()})),
    ):
        recipe._train_stage(asked, init, tmp_path / name, runtime, ParallelConfig(), None)
        said = PromptFormat.read(tmp_path / name / "model").ground
        assert said == begun[-1].ground == ((255, 255, 255) if white or name == "kept" else ())


@pytest.mark.parametrize("wrong", [[255], [0, 0, 256], [-1, 0, 0], "white", 3, [0.5, 0, 0]])
def test_a_ground_that_is_no_colour_is_told(
    wrong: object, on_white: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (on_white / "generation_config.json").write_text(json.dumps({"image_ground": wrong}))
    assert main(["ask", str(on_white), "Hello", "--device", "cpu"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "ground" in printed and "expected" in printed


def test_the_fast_filter_has_it_too(icon: Path) -> None:
    given = icon.read_bytes()
    assert square(given, 40, ground=WHITE)[0, 0].tolist() == [255, 255, 255]
    pytest.importorskip("simplejpeg")
    assert square(given, 40, fast=True, ground=WHITE)[0, 0].tolist() == [255, 255, 255]
    assert square(given, 40, fast=True)[0, 0].tolist() == [0, 0, 0]
    assert rgb(()) is None
