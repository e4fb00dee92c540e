"""Shards of every kind, small and real, as `data clean`, `data synth`, `data read` and others write them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow

from qwenvl.data.records import Caption, OcrPage, PlainText, Question, Record, Referring, to_json
from qwenvl.data.tars import write_tar
from qwenvl.markup import Box, Image, Quad
from qwenvl.tokenizer import Tokenizer

BYTES = Tokenizer({bytes([value]): value for value in range(256)})
"""Every byte a token."""

QUERIES = 4


def jpeg(number: int, side: int = 48) -> bytes:
    """An image of one colour that tells its number: its red level is five times the number."""
    file = io.BytesIO()
    pillow.new("RGB", (side, side), (number * 5 % 250, 80, 200)).save(file, "JPEG", quality=95)
    return file.getvalue()


def noise(number: int, side: int = 256) -> bytes:
    """An image that does not compress: larger than what is read of a tar that is skimmed."""
    levels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    pillow.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def pairs_tar(path: Path, texts: Sequence[str], first: int = 0) -> Path:
    """key.jpg and key.json, as `qwenvl data clean` writes them."""
    with write_tar(path) as tar:
        for number, text in enumerate(texts, first):
            tar.add(f"{number:06}.jpg", jpeg(number))
            tar.add(f"{number:06}.json", json.dumps({"text": text, "source": "CC3M"}).encode())
    return path


def pages_tar(path: Path, count: int) -> Path:
    """key.jpg, key.json and key.pixels.json, as `qwenvl data synth` writes them."""
    quad = ((1, 1), (900, 1), (900, 99), (1, 99))
    with write_tar(path) as tar:
        for number in range(count):
            record = OcrPage(image=Image(f"p{number}.jpg"), lines=(Quad(quad, label=f"LINE {number}"),))
            tar.add(f"p{number}.jpg", jpeg(number))
            tar.add(f"p{number}.json", to_json(record).encode())
            tar.add(f"p{number}.pixels.json", b"{}")
    return path


def records_lines(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("\n".join(map(to_json, records)) + "\n", encoding="utf-8")
    return path


def mixed_records(folder: Path, count: int) -> list[Record]:
    """Questions, phrases and texts about image files of the folder."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    shown = [Image(f"{folder.name}/{number}.jpg") for number in range(count)]
    records: list[Record] = [
        Question(image=image, question=f"Which number {k}?", answer=f"it is {k}")
        for k, image in enumerate(shown)
    ]
    records += [
        Referring(image=image, phrase=f"thing {k}", boxes=(Box(1, 2, 300, 400),))
        for k, image in enumerate(shown)
    ]
    return [*records, *(PlainText(text=f"words alone {k}") for k in range(count))]


def dialogues_json(path: Path, count: int, start: int = 0) -> Path:
    """The official fine-tuning JSON, with letters of several bytes."""
    (path.parent / "photos").mkdir(exist_ok=True)
    samples: list[dict[str, Any]] = []
    for number in range(start, start + count):
        (path.parent / f"photos/{number}.jpg").write_bytes(jpeg(number))
        asked = f"Picture 1: <img>photos/{number}.jpg</img>\n图中有什么 {number}？"
        turns = [{"from": "user", "value": asked}, {"from": "assistant", "value": f"第 {number} 个"}]
        samples.append({"id": str(number), "conversations": turns})
    path.write_text(json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def captions_parquet(path: Path, count: int, *, row_group: int = 4) -> Path:
    """Hugging Face's image column and a text."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"image": {"bytes": jpeg(k), "path": f"{k}.jpg"}, "text": f"row {k}"} for k in range(count)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group)
    return path


def caption_record(path: Path, text: str) -> Record:
    return Caption(image=Image(str(path)), text=text)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of shards in read-only folders go into a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
