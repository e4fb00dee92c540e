"""Fonts for Chinese signs: out of packages, with their licences, and before those of the machine."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import small_packages as made
from PIL import ImageFont
from small_drawings import fetched

from qwenvl.data.drawings import fonts, index, packages, scenes, streams
from qwenvl.data.drawings.scenes import props, scene
from qwenvl.data.synth.pages.fonts import SAMPLES, Face

NAME = fonts.PACKAGES[0]


def pillows() -> bytes:
    """A font that is on every machine: the one that Pillow holds."""
    path = ImageFont.load_default(16).path
    assert isinstance(path, BytesIO)
    return path.getvalue()


def archive(folder: Path, **files: bytes) -> dict[str, Path]:
    held = {"400Regular/A_400Regular.ttf": pillows(), "LICENSE_FONT": b"OFL", "README.md": b"", **files}
    return {NAME: folder / made.npm(folder, NAME, held).file}


def test_the_packages_of_fonts_are_fetched_with_the_others() -> None:
    known = {each.name: each for each in packages.known()}
    assert {known[name].licence for name in fonts.PACKAGES} == {"OFL-1.1"}
    assert {known[name].registry for name in fonts.PACKAGES} == {"npm"}


def test_a_font_is_kept_once_with_its_licence(tmp_path: Path) -> None:
    archives = archive(tmp_path / "packages")
    assert fonts.keep(archives, tmp_path) == 1
    (font,) = fonts.files(tmp_path)
    assert font.read_bytes() == pillows() and font.with_suffix(".txt").read_bytes() == b"OFL"
    before = font.stat().st_mtime_ns
    assert fonts.keep(archives, tmp_path) == 1 and font.stat().st_mtime_ns == before
    assert fonts.keep({}, tmp_path / "other") == 0 and not (tmp_path / "other").exists()


def test_attribution_names_every_font_with_its_licence(tmp_path: Path) -> None:
    package = made.npm(tmp_path / "packages", NAME, {"400Regular/A_400Regular.ttf": pillows(),
                                                     "LICENSE_FONT": b"Copyright 2018 Ann | Bob\n\nOFL"})  # fmt: skip
    fonts.keep({NAME: tmp_path / "packages" / package.file}, tmp_path)
    table = {NAME: replace(package, licence="OFL-1.1")}
    index.make([], table, {}, tmp_path)
    owed = (tmp_path / "ATTRIBUTION.md").read_text()
    font = f"{NAME.rpartition('/')[2]}.ttf"
    assert f"| {font} | Copyright 2018 Ann \\| Bob | OFL-1.1 | {NAME} 1.0.0 (npm) |" in owed


def test_a_package_of_two_fonts_is_another_package(tmp_path: Path) -> None:
    archives = archive(tmp_path, **{"700Bold/A_700Bold.ttf": b"bold"})
    with pytest.raises(ValueError, match=r"holds 2 fonts and 1 licences, expected one each"):
        fonts.keep(archives, tmp_path)


def test_chinese_signs_are_in_the_fetched_fonts_which_a_run_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched(tmp_path)
    place = streams.Place(folder=folder, licences="permissive", seed=1)
    assert len(streams.shards(place)) == 1
    fonts.keep(archive(folder / "packages"), folder)
    (font,) = fonts.files(folder)
    assert str(font) in streams.shards(place), "with other fonts scenes are others"
    monkeypatch.setitem(SAMPLES, "zh", "AB")  # no font of a bare machine draws Chinese
    monkeypatch.setattr(scenes, "WORDS_ZH", ("BABA",))
    assert fonts.faces(folder)["zh"] == (Face(str(font)),)
    drawn = [sign for index in range(60) if (sign := scene(props(folder), 1, index).sign) is not None]
    assert {sign.text for sign in drawn if sign.chinese} == {"BABA"}
    assert any(not sign.chinese for sign in drawn)
