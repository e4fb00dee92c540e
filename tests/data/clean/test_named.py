"""What cleaning has to know about images that people named: transparency, templates, drawings on white, short names."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from small_drawings import fetched, png, rows

from qwenvl.cli import main
from qwenvl.data.clean.engine import Settings
from qwenvl.data.clean.gallery import exhibits, page
from qwenvl.data.clean.images import BadImage, alike, difference_hash, look, on_ground
from qwenvl.data.clean.presets import NAMED, PRESETS, Thresholds
from qwenvl.data.clean.run import clean
from qwenvl.data.records import Pair
from qwenvl.data.tars import read_tar, write_tar
from qwenvl.images import open_image

TEMPLATES = (
    "gramastar", "Lemon SVG theme", "Part of the Flat Icon Collection (Wed Aug 25 23:29:46 2004)",
    "Part of the Flat Icon Collection (Wed Aug 25 23:23:49 2004)", "AIGA_Symbol_Signs", "Various Cliparts",
)  # fmt: skip
"""Titles of openclipart that stand on 1,375, 416, 551, 258, 122 and 115 drawings."""


def encoded(image: Image.Image, format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def lines_on_white(*lines: tuple[int, int, int, int], ink: str = "black") -> Image.Image:
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    for line in lines:
        draw.line(line, fill=ink, width=6)
    return image


def shard(path: Path, texts: list[str], images: list[bytes], source: str = "openclipart") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_tar(path) as tar:
        for number, (text, image) in enumerate(zip(texts, images, strict=True)):
            tar.add(f"{number:04d}.png", image)
            tar.add(f"{number:04d}.json", json.dumps({"text": text, "source": source}).encode())
    return path


# === Transparency ===


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "tRNS"])
def test_what_is_transparent_shows_the_ground_that_was_chosen(mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (10, 20, 30, 0))
    image.paste((200, 50, 50, 255), (10, 10, 30, 30))
    if mode == "tRNS":
        flat = image.convert("RGB")
        data = encoded_with_transparent(flat, (10, 20, 30))
    else:
        data = encoded(image.convert(mode) if mode != "P" else image.quantize())
    dropped, white, blue = (
        open_image(data),
        open_image(data, ground=(255, 255, 255)),
        open_image(data, ground=(0, 0, 255)),
    )
    assert dropped.getpixel((0, 0)) != (255, 255, 255), "the official code shows what lies under it"
    assert white.getpixel((0, 0)) == (255, 255, 255) and blue.getpixel((0, 0)) == (0, 0, 255)
    assert white.getpixel((20, 20)) == dropped.getpixel((20, 20)) == blue.getpixel((20, 20))


def encoded_with_transparent(image: Image.Image, colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=colour)
    return buffer.getvalue()


def test_the_edit_changes_nothing_that_is_opaque() -> None:
    edit = on_ground((255, 255, 255))
    opaque = Image.new("RGBA", (30, 30), (9, 9, 9, 255))
    for data in (
        encoded(opaque),
        encoded(Image.new("RGB", (30, 30))),
        encoded(Image.new("RGB", (30, 30)), "JPEG"),
    ):
        pair = Pair(key="a", text="a", image=data)
        assert edit(pair) is pair
    clear = Pair(key="a", text="a", image=png(0, 0))
    assert clear.image is not None
    made = edit(clear)
    assert made.image is not None and open_image(made.image).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(BadImage, match="damaged image"):
        edit(Pair(key="a", text="a", image=clear.image[:-60]))


def test_cleaning_composites_counts_it_and_keeps_the_licence(tmp_path: Path) -> None:
    source = fetched(tmp_path / "raw", {"noto": rows()["noto"]})
    outcome = clean(source / "noto-00000.tar", tmp_path / "out", Settings(thresholds=NAMED.thresholds))
    assert outcome.total.read == outcome.total.kept + outcome.total.dropped["exact duplicates"] == 16
    assert outcome.total.edited["transparency"] == 16
    members = {member.name: member.data for member in read_tar(tmp_path / "out/00000.tar")}
    images = [data for name, data in members.items() if name.endswith(".png")]
    assert images and all(open_image(data).getpixel((0, 0)) == (255, 255, 255) for data in images)
    kept = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    assert {line["licence"] for line in kept} == {"MIT"} and {line["author"] for line in kept} == {"Ann"}
    assert {"猫", "cat", "grinning cat"} <= {line["text"] for line in kept}, "a character is a name"


# === Near duplicates ===


def test_line_drawings_on_white_are_told_apart_and_copies_are_not() -> None:
    """Their difference hashes agree, because most of their neighbours are equal: 3,345 such pairs in 6,000 icons."""
    bell, file = lines_on_white((20, 64, 108, 64)), lines_on_white((20, 64, 108, 64), (100, 78, 112, 90))
    one, other = look(encoded(bell)), look(encoded(file))
    assert (one[0] ^ other[0]).bit_count() <= 3 and not alike(one[1], other[1])
    for copy in (
        encoded(bell.resize((90, 90), Image.Resampling.LANCZOS)), encoded(bell, "JPEG", quality=60),
        encoded(bell.convert("RGBA")), encoded(bell, "WEBP", quality=70),
    ):  # fmt: skip
        again = look(copy)
        assert alike(one[1], again[1]) and (one[0] ^ again[0]).bit_count() <= 7


def test_colours_are_told_apart() -> None:
    """Orange, yellow and purple squares hash alike: a hash knows no colour, and of one colour no neighbours."""
    squares = [look(encoded(Image.new("RGB", (64, 64), colour))) for colour in ("orange", "yellow", "purple")]
    assert len({each[0] for each in squares}) == 1
    assert not any(alike(a[1], b[1]) for a, b in ((squares[0], squares[1]), (squares[1], squares[2])))


def test_photographs_keep_their_near_copies() -> None:
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
    photo = small.resize((640, 480), Image.Resampling.BICUBIC)
    one = look(encoded(photo, "JPEG", quality=95))
    for copy in (encoded(photo, "JPEG", quality=40), encoded(photo.resize((320, 240)), "JPEG", quality=80)):
        again = look(copy)
        assert (one[0] ^ again[0]).bit_count() <= 4 and alike(one[1], again[1])
    assert not alike(one[1], look(encoded(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))[1])


def test_hashes_see_transparency_as_white() -> None:
    drawing = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(drawing).ellipse((16, 16, 48, 48), fill=(0, 0, 0, 255))
    flat = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(flat).ellipse((16, 16, 48, 48), fill="black")
    assert difference_hash(encoded(drawing)) == difference_hash(encoded(flat))


def test_which_image_came_before_is_told_and_shown(tmp_path: Path) -> None:
    first, other = lines_on_white((20, 64, 108, 64)), lines_on_white((64, 20, 64, 108))
    again = encoded(first.resize((100, 100), Image.Resampling.LANCZOS))
    shard(tmp_path / "raw/a.tar", ["a dash", "a bar"], [encoded(first), encoded(other)], source="lucide")
    shard(tmp_path / "raw/b.tar", ["a minus"], [again], source="tabler")
    limits = Thresholds(words=(1, 20), short_side=None, near_images=3)
    outcome = clean(tmp_path / "raw", tmp_path / "out", Settings(thresholds=limits, aside="all"))
    assert outcome.total.dropped == {"near images": 1}
    line = json.loads((tmp_path / "out/aside/00001.jsonl").read_text())
    assert line["before"] == [0, "0000"] and line["source"] == "tabler"
    _, dropped = exhibits(tmp_path / "out", 10)
    (shown,) = dropped["near images"]
    assert shown.before == "0000" and shown.image == again and shown.image_before == encoded(first)
    html = page(tmp_path / "out")
    assert (
        "almost the same image came before: 0000" in html
        and "tabler: 0000" in html
        and "lucide: 0001" in html
    )


# === Templates and names ===


def test_a_title_that_one_source_uses_again_and_again_is_a_template(tmp_path: Path) -> None:
    images = [png(k, k % 5) for k in range(12)]
    texts = (
        [TEMPLATES[2].replace("46", f"{k:02d}") for k in range(5)]
        + ["gramastar"] * 4
        + ["Lizard", "Frog", "frog 2"]
    )
    shard(tmp_path / "raw/a.tar", texts, images)
    shard(tmp_path / "raw/b.tar", ["gramastar"] * 3, images[:3], source="other")
    limits = NAMED.thresholds.changed({"template_titles": 4, "near_images": None})
    outcome = clean(tmp_path / "raw", tmp_path / "out", Settings(thresholds=limits))
    assert outcome.sources["openclipart"].dropped["template titles"] == 9, "dates are figures, too"
    assert outcome.sources["other"].dropped["template titles"] == 0, "three are no template"
    kept = [
        json.loads(m.data)["text"] for m in read_tar(tmp_path / "out/00000.tar") if m.name.endswith(".json")
    ]
    assert kept == ["Lizard", "Frog", "frog 2"]


def test_names_pass_the_preset_for_named_images_and_no_other(tmp_path: Path) -> None:
    names = ["cat", "青蛙", "鱼", "OpenOffice.org logo", "jack-o-lantern", "T-Rex"]
    shard(tmp_path / "raw/a.tar", names, [png(k, k) for k in range(len(names))])
    kept = {
        preset.name: clean(
            tmp_path / "raw", tmp_path / preset.name, Settings(thresholds=preset.thresholds)
        ).total.kept
        for preset in (NAMED, PRESETS["laion-en"], PRESETS["laion-zh"])
    }
    assert kept == {"named": len(names), "laion-en": 0, "laion-zh": 0}


def test_the_command_knows_the_preset_and_a_ground_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "raw/a.tar", ["cat"], [png(0, 0)])
    call = [
        "data",
        "clean",
        f"{tmp_path}/raw",
        f"{tmp_path}/out",
        "--preset",
        "named",
        "--change",
        "ground=[0, 0, 255]",
    ]
    assert main(call) == 0
    assert "transparency 1" in capsys.readouterr().out
    (image,) = (
        member.data for member in read_tar(tmp_path / "out/00000.tar") if member.name.endswith(".png")
    )
    assert open_image(image).getpixel((0, 0)) == (0, 0, 255)
    assert main([*call[:3], f"{tmp_path}/b", "--preset", "named", "--change", "ground=[0, 0, 256]"]) == 2
    assert "expected levels of red, green and blue" in capsys.readouterr().err


def test_a_mixture_names_what_it_found_and_what_it_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fetched(tmp_path / "raw")
    assert main(["data", "mix", str(source), "--out", f"{tmp_path}/m.jsonl", "--table", "pretraining"]) == 2
    said = capsys.readouterr().err
    assert "found 8 x lucide, 8 x noto, 8 x openmoji and 2 more" in said
    assert "goes by the `source` of captions; expected LAION-en, LAION-COCO, DataComp" in said
