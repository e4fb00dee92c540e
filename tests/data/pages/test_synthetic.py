"""Synthetic pages: the same from the same numbers, every glyph drawn, every quad where the letters are."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qwenvl.data.synth.pages.fonts import Face, Fonts
from qwenvl.data.synth.pages.geometry import Field, Warp, homography_of, rectangle
from qwenvl.data.synth.pages.layout import Written
from qwenvl.data.synth.pages.look import Look, photograph
from qwenvl.data.synth.pages.page import PageMaker
from qwenvl.data.synth.pages.scenery import Backgrounds
from qwenvl.data.synth.pages.text import TextSource, is_chinese

FONTS = Fonts.find()
FLAT = PageMaker(Look(longest=900), fonts=FONTS)
BENT = PageMaker(replace(photograph(), longest=900, curl=(0, 0.008)), fonts=FONTS)
"""Bent so little that the ends of a line are nearly straight: the crop by a quad is straight."""
SEEDS = st.integers(0, 2**32 - 1)


# ---- An independent way back: nothing of the package's geometry is used ----


def homography_by_svd(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[-x, -y, -1, 0, 0, 0, u * x, u * y, u], [0, 0, 0, -x, -y, -1, v * x, v * y, v]]
    return np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)


def crop_by(quad: np.ndarray, grey: np.ndarray, width: int, height: int, rim: int) -> np.ndarray:
    """The image inside the quad as an upright rectangle with `rim` pixels around it, bilinear."""
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    way = homography_by_svd(corners, quad)
    x, y = np.meshgrid(np.arange(-rim, width + rim) + 0.5, np.arange(-rim, height + rim) + 0.5)
    lifted = np.stack([x, y, np.ones_like(x)], -1) @ way.T
    u, v = lifted[..., 0] / lifted[..., 2] - 0.5, lifted[..., 1] / lifted[..., 2] - 0.5
    u, v = u.clip(0, grey.shape[1] - 1.001), v.clip(0, grey.shape[0] - 1.001)
    i, j = v.astype(int), u.astype(int)
    a, b = v - i, u - j
    top = grey[i, j] * (1 - b) + grey[i, j + 1] * b
    return top * (1 - a) + (grey[i + 1, j] * (1 - b) + grey[i + 1, j + 1] * b) * a


def rendered(line: Written) -> np.ndarray:
    left, top, right, bottom = line.ink
    canvas = Image.new("L", (right - left, bottom - top), 255)
    start = (line.origin[0] - left, line.origin[1] - top)
    ImageDraw.Draw(canvas).text(start, line.text, fill=0, font=line.face.sized(line.size), anchor="ls")
    return np.asarray(canvas, float)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9))


def best_shift(crop: np.ndarray, drawn: np.ndarray, rim: int) -> tuple[float, int, int]:
    """The largest correlation over shifts of up to `rim` pixels, and that shift."""
    height, width = drawn.shape
    shifts = [(dx, dy) for dx in range(-rim, rim + 1) for dy in range(-rim, rim + 1)]
    found = [
        (likeness(crop[rim + dy : rim + dy + height, rim + dx : rim + dx + width], drawn), dx, dy)
        for dx, dy in shifts
    ]
    return max(found)


def check_quads(maker: PageMaker, seed: int, index: int, ends_only: bool) -> None:
    page, sheet = maker.page_and_sheet(seed, index)
    assert len(page.lines) == len(sheet.written)
    grey = np.asarray(page.image.convert("L"), float)
    pairs = list(zip(page.lines, sheet.written, strict=True))
    for line, flat in pairs[:: max(1, len(pairs) // 5)]:
        assert line.text == flat.text
        drawn = rendered(flat)
        height, width = drawn.shape
        if height < 9 or width < 3 * height:
            continue  # a dash or a full stop is like any other smudge
        crop = crop_by(np.array(line.quad), grey, width, height, rim=3)
        windows = [(0, width)] if not ends_only else [(0, 2 * height), (width - 2 * height, width)]
        for start, stop in windows:
            if drawn[:, start:stop].std() < 30:
                continue
            score, dx, dy = best_shift(crop[:, start : stop + 6], drawn[:, start:stop], rim=3)
            assert score > 0.45, f"page {seed}/{index}, {line.text!r}: the crop is not the line ({score:.2f})"
            assert max(abs(dx), abs(dy)) <= (2 if ends_only else 1), (
                f"{seed}/{index} {line.text!r}: {dx}, {dy}"
            )


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, index=st.integers(0, 10**6))
def test_warping_back_by_the_quad_gives_the_line(seed: int, index: int) -> None:
    check_quads(FLAT, seed, index, ends_only=False)


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, index=st.integers(0, 10**6))
def test_the_ends_of_a_bent_line_lie_at_the_corners_of_its_quad(seed: int, index: int) -> None:
    check_quads(BENT, seed, index, ends_only=True)


def test_the_check_sees_a_quad_that_is_off_by_three_pixels() -> None:
    page, sheet = FLAT.page_and_sheet(1, 1)
    grey = np.asarray(page.image.convert("L"), float)
    line, flat = max(zip(page.lines, sheet.written, strict=True), key=lambda pair: len(pair[0].text))
    drawn = rendered(flat)
    off = crop_by(np.array(line.quad) + np.array([3, 0]), grey, drawn.shape[1], drawn.shape[0], rim=5)
    assert abs(best_shift(off, drawn, rim=5)[1]) >= 2


# ---- Geometry ----


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_inverse_of_a_warp_undoes_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rectangle(900, 700) + rng.uniform(-60, 60, (4, 2))
    warp = Warp((900, 700), Field.random(rng, 25.0, 700.0), homography_of(rectangle(900, 700), corners))
    points = rng.uniform(0, 700, (50, 2))
    assert np.abs(warp.inverse(warp(points)) - points).max() < 1e-3


def test_a_warp_moves_pixels_where_it_moves_points() -> None:
    """A dot on the page is found in the image where the warp says, to a third of a pixel."""
    rng = np.random.default_rng(5)
    page = Image.new("L", (600, 400), 0)
    dots = [(x, y) for x in (60, 300, 520) for y in (50, 210, 340)]
    for x, y in dots:
        page.paste(255, (x, y, x + 6, y + 6))
    corners = rectangle(600, 400) * 0.9 + rng.uniform(0, 40, (4, 2))
    warp = Warp((600, 400), Field.random(rng, 8.0, 400.0), homography_of(rectangle(600, 400), corners))
    laid, start = warp.apply(page, (640, 440))
    light = np.asarray(laid, float)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    for x, y in warp(np.array(dots, float) + 3):
        near = light * (np.hypot(columns + 0.5 + start[0] - x, rows + 0.5 + start[1] - y) < 12)
        found = np.array([(near * (columns + 0.5)).sum(), (near * (rows + 0.5)).sum()]) / near.sum() + start
        assert np.abs(found - (x, y)).max() < 0.34


# ---- Pages ----


def test_a_page_is_a_function_of_its_numbers() -> None:
    a, b = FLAT.page(3, 4), PageMaker(Look(longest=900), fonts=FONTS).page(3, 4)
    assert a.jpeg() == b.jpeg()
    assert a.lines == b.lines
    assert FLAT.page(3, 5).jpeg() != a.jpeg()
    assert FLAT.page(4, 4).jpeg() != a.jpeg()


@pytest.mark.parametrize("index", range(6))
def test_lines_are_inside_the_image_clockwise_and_in_one_piece(index: int) -> None:
    page = BENT.page(7, index)
    assert page.lines
    for line in page.lines:
        points = np.array(line.quad)
        assert (points >= 0).all()
        assert (points <= page.image.size).all()
        x, y = points.T
        assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0, "corners run against the clock"
        assert line.text == " ".join(line.text.split())
        assert line.text


def test_the_longest_side_is_what_was_asked_for() -> None:
    assert {max(FLAT.page(0, k).image.size) for k in range(4)} == {900}
    sizes = [PageMaker(fonts=FONTS).page(0, k).image.size for k in range(4)]
    assert all(720 <= min(size) <= 1024 and max(size) <= 2 * min(size) + 1 for size in sizes)


def test_a_page_becomes_a_record_on_the_grid() -> None:
    page = FLAT.page(1, 2)
    record = page.record("1.jpg")
    assert [quad.label for quad in record.lines] == [line.text for line in page.lines]
    width, height = page.image.size
    for quad, line in zip(record.lines, page.lines, strict=True):
        off = np.abs(np.array(quad.to_pixels(width, height)) - np.array(line.quad))
        assert (off <= np.array([width, height]) * 0.00101).all()


def test_the_built_in_font_is_enough() -> None:
    page, sheet = PageMaker(Look(longest=700), fonts=Fonts([])).page_and_sheet(0, 0)
    assert {line.face for line in sheet.written} == {Face("")}
    assert not any(is_chinese(line.text) for line in page.lines)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_line_has_a_glyph_its_face_cannot_draw(language: str) -> None:
    if language not in FONTS.languages:
        pytest.skip(
            "no Chinese font on this machine (apt-get install fonts-wqy-microhei): Chinese pages not checked"
        )
    maker = PageMaker(Look(longest=700), fonts=FONTS, texts=TextSource(chinese=float(language == "zh")))
    for index in range(5):
        for line in maker.page_and_sheet(0, index)[1].written:
            assert line.face.covers(line.text)


def test_text_a_face_cannot_draw_is_left_out_word_by_word() -> None:
    face = Face("")
    assert not face.covers("中")
    assert face.covered("one 中文 two\u05d0 three") == "one three"


# ---- What pages are made from ----


def test_text_of_a_folder_is_used(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("unmistakable words " * 200)
    (tmp_path / "b.txt").write_bytes(b"unmistakable \xff\xfe words " * 50)
    maker = PageMaker(Look(longest=600), fonts=Fonts([]), texts=TextSource(tmp_path))
    words = {word for line in maker.page(0, 0).lines for word in line.text.split()}
    assert words <= {"unmistakable", "words"}
    assert words


@pytest.mark.parametrize("make", [TextSource, Backgrounds, Fonts.find])
def test_an_empty_folder_is_told_in_a_sentence(make, tmp_path) -> None:
    with pytest.raises(ValueError, match="give a folder"):
        make(tmp_path)


def test_backgrounds_of_a_folder_are_used(tmp_path) -> None:
    Image.new("RGB", (300, 200), (0, 255, 0)).save(tmp_path / "green.png")
    look = replace(photograph(), longest=600, fullscreen=0.0, tint=0.0)
    page = PageMaker(look, fonts=Fonts([]), backgrounds=Backgrounds(tmp_path)).page(0, 0)
    pixels = np.asarray(page.image, int)
    assert ((pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 40)).mean() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"longest": 10}, "64"),
        ({"blur": (2, 1)}, "Look.blur"),
        ({"curl": (0, 0.5)}, "fold"),
        ({"rows": 0}, "rows"),
    ],
)
def test_a_look_that_cannot_be_is_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Look(**changes)


@given(seed=SEEDS, language=st.sampled_from(["en", "zh"]))
@settings(max_examples=20, deadline=None)
def test_made_up_text_is_in_its_language(seed: int, language: str) -> None:
    text = TextSource().passage(np.random.default_rng(seed), 300, language)
    assert is_chinese(text) == (language == "zh")
    assert 250 < len(text) < 500
    assert text == TextSource().passage(np.random.default_rng(seed), 300, language)
