"""Maps: regions by the extent of their colour, out of their package into training documents and back; small pages."""

import gettext
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import small_packages as made_up
from PIL import Image as pillow
from small_drawings import fetched

from qwenvl.data.drawings import index, maps, streams
from qwenvl.data.formats import Example
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.markup import Image, Quad, Ref, parse
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.data import require_sources
from qwenvl.train.stages import StageConfig

LETTERS = Tokenizer({bytes([value]): value for value in range(256)})

REGIONS = {  # name -> colour, extent in pixels of 200 x 100
    "Nord": (200, 30, 30), "Süd": (30, 200, 30), "Point": (30, 30, 200), "Water": (0, 0, 99), "Twin": (9, 9, 9),
}  # fmt: skip


def painted() -> bytes:
    levels = np.full((100, 200, 3), 255, np.uint8)
    levels[:, 150:] = REGIONS["Water"]
    levels[10:30, 20:120] = REGIONS["Nord"]
    levels[40:90, 20:70], levels[60:80, 80:110] = REGIONS["Süd"], REGIONS["Süd"]  # two parts of one region
    levels[2:5, 2:5] = REGIONS["Point"]
    levels[92:99, 100:140] = REGIONS["Twin"]
    buffer = io.BytesIO()
    pillow.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def division(name: str, more: str = "") -> str:
    red, green, blue = REGIONS[name]
    colour = f"<color><red>{red}</red><green>{green}</green><blue>{blue}</blue></color>"
    return f"<division><name>{name}</name>{more}{colour}</division>"


def described(*divisions: str, image: str = "land.png") -> bytes:
    head = f"<!DOCTYPE kgeographyMap><map><mapFile>{image}</mapFile><name>Land</name>"
    return f'<?xml version="1.0" encoding="utf-8"?>{head}{"".join(divisions)}</map>'.encode()


def translations(**said: str) -> bytes:
    """A .mo file: English behind the name of its map -> Chinese."""
    texts = [("", "Content-Type: text/plain; charset=UTF-8\n"), *said.items()]
    pairs = sorted((f"land.kgm\x04{one}" if one else "", other) for one, other in texts)
    head, tables, strings = 28, b"", b""
    at = head + 16 * len(pairs)
    for column in (0, 1):
        for pair in pairs:
            data = pair[column].encode()
            tables += struct.pack("<2I", len(data), at + len(strings))
            strings += data + b"\0"
    start = struct.pack(
        "<7I", 0x950412DE, 0, len(pairs), head, head + 8 * len(pairs), 0, head + 16 * len(pairs)
    )
    whole = start + tables + strings
    assert gettext.GNUTranslations(io.BytesIO(whole)).pgettext("land.kgm", "Nord") == said.get("Nord", "Nord")
    return whole


def made(tmp_path: Path, **files: bytes) -> tuple[index.Made, Path]:
    """A fetched folder with the maps of a package."""
    whole = {
        "land.png": painted(),
        "land.kgm": described(division("Nord"), division("Süd"), division("Point"), division("Twin"),
                              division("Twin"), division("Water", "<ignore>yes</ignore>")),
        **{name.replace("__", "."): data for name, data in files.items()},
    }  # fmt: skip
    inside = {f"usr/share/kgeography/{name}": data for name, data in whole.items()}
    inside["usr/share/locale/zh_CN/LC_MESSAGES/kgeography.mo"] = translations(Nord="北方", Land="国土")
    package = made_up.debian(tmp_path / "registry", maps.PACKAGE, inside)
    archives = {package.name: tmp_path / "registry" / package.file}
    out = fetched(tmp_path / "out")
    before = (out / "index.jsonl").read_text()
    (found,) = index.make([*maps.collections()], {package.name: package}, archives, out, side=64, processes=1)
    (out / "index.jsonl").write_text(before + (out / "kgeography.jsonl").read_text())
    return found, out


def test_regions_are_the_extent_of_their_colour(tmp_path: Path) -> None:
    found, out = made(tmp_path, bad__kgm=described(image="none.png"), worse__kgm=b"<map><name>", odd__kgm=described(
        "<division><name>a</name></division>"))  # fmt: skip
    assert found.drawings == 1 and found.refused["no image"] == 3, "each by itself, and the rest is there"
    (row,) = map(json.loads, (out / "kgeography.jsonl").read_text().splitlines())
    assert (row["en"], row["zh"], row["kind"], row["licence"]) == (
        "map of Land",
        "国土地图",
        "map",
        "GPL-2.0-or-later",
    )
    assert [(each["en"], each["zh"], each["box"]) for each in row["regions"]] == [
        ("Nord", "北方", [100, 100, 600, 300]), ("Süd", "", [100, 400, 550, 900]),
    ], "no water, nothing too small to be seen, no name or colour of two"  # fmt: skip


def spelled(document: Example) -> str:
    return LETTERS.decode(document.ids)


def test_a_map_is_told_by_its_regions_where_its_licence_is_asked_for(tmp_path: Path) -> None:
    _, out = made(tmp_path)
    row = SourceConfig(paths=("drawings:map_regions",), images=str(out), licences="any")
    documents = [streams.SOURCES["map_regions"](row.place(3), LETTERS, 4, number) for number in range(8)]
    again = streams.SOURCES["map_regions"](row.place(3), LETTERS, 4, 5)
    assert again.ids == documents[5].ids and len(documents[5].images) == 1
    said = "".join(map(spelled, documents))
    assert "<ref>Nord</ref><box>(100,100),(600,300)</box>" in said, "found"
    assert "<box>(100,100),(600,300)</box> is 北方" in said, "and named, in both languages"
    assert " map of Land" in said and "国土地图" in said
    with pytest.raises(
        ValueError, match=r'kgeography-data, under GPL: fetch it, and give the row licences = "any"'
    ):
        streams.require(SourceConfig(paths=row.paths, images=str(out)).place(3), "map_regions")
    file = tmp_path / "maps.toml"
    file.write_text(
        'name = "maps"\ntrains = ["llm"]\nimage_size = 112\nsequence_length = 320\ndocuments = 4\n'
        f'micro_documents = 4\ndata = [{{ paths = ["drawings:map_regions"], images = "{out}" }}]\n'
        "[optim]\npeak_lr = 1e-3\nfinal_lr = 1e-4\nwarmup_steps = 0\nsteps = 1\n"
    )
    with pytest.raises(ValueError, match="kgeography-data"):  # before anything is trained
        require_sources(StageConfig.read(file))


def test_small_pages_are_those_of_the_generator_with_their_quads(tmp_path: Path) -> None:
    place = streams.Place(folder=fetched(tmp_path), licences="permissive", seed=2)
    for number in range(4):
        document, again = (streams.SOURCES["drawn_pages"](place, LETTERS, 4, number) for _ in range(2))
        assert document.ids == again.ids and len(document.ids) <= streams.DOCUMENT_TOKENS
        (image,) = document.images
        assert isinstance(image, Image) and max(np.asarray(image.source).shape) == streams.PAGE.longest
        said = parse(spelled(document))
        lines = [part.text.strip() for part in said if isinstance(part, Ref)]
        assert lines and all(lines) and sum(isinstance(part, Quad) for part in said) == len(lines)
