"""A small folder like those of `qwenvl data fetch drawings`, its drawings made here: discs and bars in colours."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.data.tars import write_tar
from qwenvl.model.vlm import QwenVL
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.stages import OptimConfig, StageConfig

NAMES = {
    "cat": ("cat", "猫", ("animal", "pet")), "dog": ("dog", "狗", ("animal", "pet")),
    "car": ("car", "汽车", ("vehicle", "road")), "bus": ("bus", "公交车", ("vehicle", "road")),
    "key": ("key", "钥匙", ("lock",)), "umbrella": ("umbrella", "雨伞", ("rain",)),
    "house": ("house", "房子", ("home",)), "grinning-cat": ("grinning cat", "大笑的猫", ("animal", "face")),
}  # fmt: skip
"""Key -> English name, Chinese name, keywords."""

SETS = ("noto", "openmoji", "twemoji", "lucide", "tuxpaint")
LICENCES = {"openmoji": "CC-BY-SA-4.0", "twemoji": "CC-BY-4.0", "tuxpaint": "GPL-2.0-or-later"}


def png(number: int, source: int, *, side: int = 48, ink: tuple[int, int, int] | None = None) -> bytes:
    """A drawing with transparency all around, another for each thing and a little different in each set."""
    image = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(image)
    colour = ink or ((40 + 61 * number) % 256, (90 + 97 * number) % 256, (30 * source + 133 * number) % 256)
    edge = 4 + source
    box = (edge, 2 * edge, side - edge, side - edge - number % 3)
    if number % 2:
        draw.ellipse(box, fill=(*colour, 255))
    else:
        draw.rectangle(box, fill=(*colour, 255))
    if ink is None:
        inner = (side // 3, side // 3, side // 2 + number, side // 2)
        draw.rectangle(inner, fill=(255 - colour[0], colour[1], 255 - colour[2], 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rows(sets: Iterable[str] = SETS) -> dict[str, list[tuple[dict[str, Any], bytes]]]:
    """The drawings of every set: their lines of the index and their images."""
    made: dict[str, list[tuple[dict[str, Any], bytes]]] = {}
    for source_number, source in enumerate(sets):
        for number, (key, (en, zh, keywords)) in enumerate(NAMES.items()):
            ink = (34, 34, 34) if source == "lucide" else None
            row = {
                "key": key, "shard": f"{source}-00000.tar", "source": source, "captions": [en, zh], "en": en, "zh": zh,
                "keywords": list(keywords), "kind": "icon" if ink else "emoji",
                "licence": LICENCES.get(source, "MIT"), "author": "Ann", "package": f"@iconify-json/{source}",
            }  # fmt: skip
            made.setdefault(source, []).append((row, png(number, source_number, ink=ink)))
    return made


def fetched(folder: Path, made: Mapping[str, list[tuple[dict[str, Any], bytes]]] | None = None) -> Path:
    """The folder with these drawings, by default all of `rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for drawings in (rows() if made is None else made).values():
        with write_tar(folder / drawings[0][0]["shard"]) as tar:
            for row, image in drawings:
                columns = {name: value for name, value in row.items() if name not in ("key", "shard")}
                tar.add(f"{row['key']}.png", image)
                tar.add(f"{row['key']}.json", json.dumps(columns, ensure_ascii=False).encode())
                lines.append(json.dumps(row, ensure_ascii=False))
    (folder / "index.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text("# Whom these drawings are owed to\n")
    return folder


# === What learns from them ===

LETTERS = Tokenizer({bytes([value]): value for value in range(256)})


def row(folder: Path, **values: Any) -> SourceConfig:
    return SourceConfig(paths=("drawings:names",), images=str(folder), **values)


def stage(folder: Path, steps: int = 30, **optim: float) -> StageConfig:
    return StageConfig(
        name="0-names", objective="names", trains=("vision",), image_size=28, sequence_length=64,
        data=(row(folder),), documents=8, micro_documents=4, bfloat16=False, save_every=10,
        optim=OptimConfig(peak_lr=5e-3, final_lr=1e-4, warmup_steps=3, steps=steps),
    )  # fmt: skip


def small(layers: int = 2, *, blocks: int = 1, heads: int = 2) -> QwenVL:
    torch.manual_seed(0)
    return QwenVL(
        ModelConfig(
            vision=VisionConfig(width=32, layers=layers, heads=2, mlp_width=64, image_size=28),
            adapter=AdapterConfig(queries=4, heads=2),
            llm=LLMConfig(
                vocab_size=LETTERS.n_vocab,
                hidden=96,
                layers=blocks,
                heads=heads,
                mlp_width=16,
                sequence_length=64,
            ),
            imgpad_id=LETTERS.imgpad,
        )
    )
