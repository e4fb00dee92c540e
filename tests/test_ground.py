"""What stands behind transparency: nothing for official models, what it learned on for a checkpoint that says so."""

import base64
import importlib.util
import io
import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow

from qwenvl.chat import Assistant
from qwenvl.checkpoint.converting import convert
from qwenvl.checkpoint.folder import resolve
from qwenvl.checkpoint.hub import preprocessing
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.cli import main
from qwenvl.config import from_dict
from qwenvl.data.stream.images import square
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.predictions import read_foreign
from qwenvl.evaluation.report import image_of
from qwenvl.generate.engine import Engine, Prompt
from qwenvl.images import WHITE, normalise, open_image, over, preprocess, rgb
from qwenvl.integrations.onnx import NEEDED
from qwenvl.markup import Image
from qwenvl.options import PromptFormat
from qwenvl.parity.rounding import shown
from qwenvl.runtime import Runtime
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import open_upload
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import recipe
from qwenvl.train.data import batches
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.stages import OptimConfig, StageConfig

SAYS = {"image_ground": [255, 255, 255]}

STAGE: dict[str, Any] = {
    "name": "icons", "image_size": 112, "sequence_length": 128, "documents": 1, "micro_documents": 1,
    "optim": {"peak_lr": 1e-3, "final_lr": 1e-3, "warmup_steps": 0, "steps": 1}, "data": [],
}  # fmt: skip


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


def behind(white: bool) -> tuple[int, int, int]:
    return WHITE if white else (0, 0, 0)


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
        reply = assistant.ask(given, "What?", max_new_tokens=1)
        assert reply.draw().getpixel((0, 0)) == behind(white)
    assert len(seen) == 7, "of the dialogue the second question has both images"
    assert all(np.array_equal(each, expected(icon, white)) for each in seen)
    corner = pillow.open(tmp_path / "out.png").convert("RGB").getpixel((0, 0))
    assert corner == behind(white), "what is drawn on is what was seen"


@pytest.mark.parametrize("white", [False, True])
def test_evaluation_and_server_show_it_too(white: bool, icon: Path, on_white: Path, tmp_path: Path) -> None:
    folder = on_white if white else resolve("tiny")
    assistant = Assistant.load(folder, device="cpu")
    ground = assistant.prompt_format.ground
    assert np.array_equal(Asker(assistant)._read(Image(icon)), expected(icon, white))
    upload = open_upload(icon.read_bytes(), Limits(), side=112, ground=ground)
    assert np.array_equal(preprocess(upload.image, 112), expected(icon, white))
    said = preprocessing(assistant.model.config, ground)
    assert said.get("image_ground", []) == list(ground), "of a graph, too, it is said how its pixels are made"


def test_it_travels_with_the_weights(on_white: Path, tmp_path: Path) -> None:
    official = tmp_path / "official"
    shutil.copytree(Path(__file__).parent / "golden" / "models" / "tiny_q4", official)
    (official / "generation_config.json").write_text(json.dumps(SAYS))
    first, back = tmp_path / "first", tmp_path / "back"
    convert(official, first)
    convert(first, back, to="official")
    assert PromptFormat.read(first).ground == PromptFormat.read(back).ground == WHITE
    quantize(on_white, tmp_path / "small", Plan(to="int8"))
    assert PromptFormat.read(tmp_path / "small").ground == WHITE


@pytest.mark.parametrize("white", [False, True])
def test_a_person_sees_in_the_report_what_the_model_saw(
    white: bool, icon: Path, on_white: Path, tmp_path: Path
) -> None:
    """Scored again by hand, too; and 4 bits are rounded for what the model sees."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    said = [
        {"from": "user", "value": f"Picture 1: <img>{icon}</img>\nWhat?"},
        {"from": "assistant", "value": "red"},
    ]
    rows.write_text(json.dumps({"id": "1", "conversations": said}) + "\n")
    folder = on_white if white else resolve("tiny")
    assert main(["eval", "run", str(folder), str(rows), "--out", str(out), "--device", "cpu"]) == 0
    [scored] = out.rglob("scored.jsonl")
    record = json.loads(scored.read_text())
    [again] = read_foreign(scored).values()
    assert tuple(record["ground"]) == again.ground == (WHITE if white else ())
    assert image_of(record["images"][0], record).getpixel((0, 0)) == behind(white)
    assert main(["eval", "report", str(scored.parent), "--out", str(tmp_path / "page.html")]) == 0
    [shown_there] = re.findall(r"data:image/webp;base64,([^\"]+)", (tmp_path / "page.html").read_text())
    corner = np.asarray(pillow.open(io.BytesIO(base64.b64decode(shown_there))).convert("L"))[0, 0]
    assert corner > 240 if white else corner < 15
    [calibrated] = shown(str(folder), str(rows), 1)
    assert calibrated.pixels is not None
    assert np.array_equal(calibrated.pixels[0], expected(icon, white))


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


WRONG: list[Any] = [
    [255], [0, 0, 256], [-1, 0, 0], "white", "", 3, 0, True, False, {}, {"red": 255}, [0.5, 0, 0], [True, False, True],
    [[255] * 3] * 3, ["255", "0", "0"], [255] * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:20])
def test_a_ground_that_is_no_colour_is_told(
    wrong: object, on_white: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (on_white / "generation_config.json").write_text(json.dumps({"image_ground": wrong}))
    assert main(["ask", str(on_white), "Hello", "--device", "cpu"]) == 2
    assert is_whole(capsys.readouterr().err)
    with pytest.raises(
        ValueError, match=r"stage.toml\.ground.* expected|^ground of stage icons is .* expected"
    ):
        from_dict(StageConfig, {**STAGE, "ground": wrong}, "stage.toml")


def is_whole(printed: str) -> bool:
    """One sentence: where, what is there, what is expected, what to do."""
    *_, last = printed.splitlines()
    there = "image_ground of " in last and "generation_config.json is " in last
    return (
        there
        and "expected levels of red, green and blue" in last
        and "Leave it out" in last
        and len(last) < 500
    )


ROWS = '{"conversations": [{"from": "user", "value": "What?"}, {"from": "assistant", "value": "Red."}]}\n'


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "CHECKPOINT", "--device", "cpu"],
        ["eval", "run", "CHECKPOINT", "toyworld", "--limit", "1", "--out", "NEW", "--device", "cpu"],
        ["serve", "CHECKPOINT", "--device", "cpu", "--port", "0"],
        ["finetune", "CHECKPOINT", "--data", "ROWS", "--out", "NEW", "--device", "cpu"],
        ["quantize", "CHECKPOINT", "--to", "int4", "--out", "NEW", "--calibrate", "ROWS"],
        ["convert", "CHECKPOINT", "NEW", "--to", "hf"],
        ["convert", "CHECKPOINT", "NEW", "--to", "onnx"],
    ],
    ids=lambda command: " ".join(command[:1] + command[-1:]),
)
def test_every_command_that_reads_it_tells_so(
    command: list[str], on_white: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command[-1] == "hf":
        pytest.importorskip("transformers")
    if command[-1] == "onnx" and any(importlib.util.find_spec(name) is None for name in NEEDED):
        pytest.skip("onnx is not installed here")
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (on_white / "generation_config.json").write_text(json.dumps({"image_ground": "white"}))
    places = {"CHECKPOINT": on_white, "ROWS": tmp_path / "rows.jsonl", "NEW": tmp_path / "new"}
    assert main([str(places.get(word, word)) for word in command]) == 2
    assert is_whole(capsys.readouterr().err) and not (tmp_path / "new" / "model").exists()


def test_nothing_and_null_are_no_ground(on_white: Path) -> None:
    for empty in ([], None):
        (on_white / "generation_config.json").write_text(json.dumps({"image_ground": empty}))
        assert PromptFormat.read(on_white).ground == ()


# === Ways to be transparent ===


def png(bits: int, colour: int, row: bytes, clear: bytes = b"", palette: bytes = b"") -> bytes:
    """Two rows of two pixels: the left lets through what is behind, the right does not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = {b"IHDR": struct.pack(">IIBBBBB", 2, 2, bits, colour, 0, 0, 0), b"PLTE": palette, b"tRNS": clear}
    parts |= {b"IDAT": zlib.compress((b"\0" + row) * 2), b"IEND": b""}
    chunks = [chunk(kind, data) for kind, data in parts.items() if data or kind == b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def saved(kind: str, mode: str = "RGBA", **how: Any) -> bytes:
    image, file = pillow.new("RGBA", (2, 2), (0, 0, 0, 0)), io.BytesIO()
    image.paste((128, 128, 128, 255), (1, 0, 2, 2))
    image.convert(mode).save(file, kind, **how)
    return file.getvalue()


NEXT: dict[str, Any] = {"save_all": True, "append_images": [pillow.new("RGBA", (2, 2), (0, 255, 0, 128))]}

CLEAR: dict[str, bytes] = {
    "grey of 16 bits, one level": png(16, 0, struct.pack(">2H", 0, 0x8000), b"\0\0"),
    "grey of 16 bits, a level beside it": png(16, 0, struct.pack(">2H", 0x80, 0x8000), b"\0\x80"),
    "grey of 8 bits, one level": png(8, 0, b"\0\x80", b"\0\0"),
    "colour of 16 bits, one colour": png(16, 2, struct.pack(">6H", *[0] * 3, *[0x8080] * 3), bytes(6)),
    "colour of 8 bits, one colour": png(8, 2, bytes([0] * 3 + [128] * 3), bytes(6)),
    "grey and alpha of 16 bits": png(16, 4, struct.pack(">4H", 0, 0, 0x8080, 0xFFFF)),
    "colour and alpha of 16 bits": png(16, 6, struct.pack(">8H", *[0] * 4, *[0x8080] * 3, 0xFFFF)),
    "a palette, one of them": png(8, 3, b"\0\1", b"\0", bytes([0] * 3 + [128] * 3)),
    "a palette of two": png(1, 3, b"\x40", b"\0", bytes([0] * 3 + [128] * 3)),
    "grey and alpha": saved("PNG", "LA"),
    "an animated PNG": saved("PNG", **NEXT),
    "WebP": saved("WEBP", lossless=True, exact=True),
    "an animated WebP": saved("WEBP", lossless=True, exact=True, **NEXT),
    "GIF": saved("GIF"),
    "an animated GIF": saved("GIF", **NEXT),
    "TIFF": saved("TIFF"),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_whatever_is_transparent_shows_the_ground(kind: str) -> None:
    for ground, left in ((None, (0, 0, 0)), (WHITE, WHITE), ((9, 99, 199), (9, 99, 199))):
        image = open_image(CLEAR[kind], ground=ground)
        assert (image.mode, image.getpixel((0, 1)), image.getpixel((1, 1))) == ("RGB", left, (128, 128, 128))


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "PA"])
def test_so_do_the_modes_that_only_pillow_has(mode: str) -> None:
    clear = pillow.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(
        "P" if mode == "PA" else "LA" if mode == "La" else "RGBA"
    )
    image = clear.convert(mode)
    assert open_image(image, ground=WHITE).getpixel((0, 0)) == WHITE
    assert open_image(image).getpixel((0, 0)) == (0, 0, 0)


def test_the_fast_filter_has_it_too(icon: Path) -> None:
    given = icon.read_bytes()
    assert square(given, 40, ground=WHITE)[0, 0].tolist() == [255, 255, 255]
    pytest.importorskip("simplejpeg")
    assert square(given, 40, fast=True, ground=WHITE)[0, 0].tolist() == [255, 255, 255]
    assert square(given, 40, fast=True)[0, 0].tolist() == [0, 0, 0]
    assert rgb(()) is None
