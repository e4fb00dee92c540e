"""Images in a terminal, read back as a terminal would: pixel by pixel."""

import base64
import io
import os
import pty
import re
import threading

import numpy as np
import pytest
from PIL import Image as pillow

from qwenvl.inline import CELL, Protocol, Screen, blocks, detected, fitted, has_sixels, kitty, screen, sixel
from qwenvl.markup import Box, Quad


def noise(width: int, height: int, colours: int = 40) -> pillow.Image:
    """Noise of so many colours over a gradient."""
    generator = np.random.default_rng(width * height)
    palette = generator.integers(0, 256, (colours, 3), dtype=np.uint8)
    return pillow.fromarray(palette[generator.integers(0, colours, (height, width))])


def read_kitty(text: str) -> tuple[dict[str, str], pillow.Image]:
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert re.sub(r"\x1b_G[^\x1b]*\x1b\\", "", text) == "\n" and all(len(data) <= 4096 for _, data in pieces)
    assert [keys[-3:] for keys, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
    keys = dict(key.split("=") for key in pieces[0][0].split(",") if key)
    return keys, pillow.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces))))


def read_sixel(text: str) -> np.ndarray:
    found = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\\n', text, re.DOTALL)
    assert found is not None
    canvas = np.zeros((int(found[2]) + 6, int(found[1]), 3))
    palette: dict[int, list[float]] = {}
    top = left = colour = 0
    for kind, number, define, count, symbol in re.findall(
        r"([$-])|#(\d+)((?:;\d+){4})?|(?:!(\d+))?([?-~])", found[3]
    ):
        if kind:
            left, top = 0, top + 6 * (kind == "-")
        elif number:
            colour = int(number)
            if define:
                palette[colour] = [int(part) * 2.55 for part in define.split(";")[2:]]
        else:
            right = left + int(count or 1)
            for bit in range(6):
                if (ord(symbol) - 63) >> bit & 1:
                    canvas[top + bit, left:right] = palette[colour]
            left = right
    return canvas[: int(found[2])]


def read_blocks(text: str) -> np.ndarray:
    rows = []
    for line in text.splitlines():
        assert line.endswith("\x1b[0m")
        upper, lower = [], []
        over: list[int] = []
        under: list[int] | None = None
        for codes, cell in re.findall(r"\x1b\[([\d;]*)m|(▀)", line[: -len("\x1b[0m")]):
            if cell:
                upper.append(over)
                lower.append(under)
            else:
                parts = [int(part) for part in codes.split(";")]
                over, under = parts[2:5], parts[7:10] or None
        rows += [upper] if lower[0] is None else [upper, lower]
    return np.array(rows)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (100, 90)])
def test_kitty_gets_the_pixels_whole(size: tuple[int, int]):
    image = noise(*size, colours=5000)
    keys, read = read_kitty(kitty(image, 12))
    assert (keys["a"], keys["f"], keys["c"], keys["q"]) == ("T", "100", "12", "2")
    assert np.array_equal(np.asarray(read), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 1), (5, 6), (33, 13), (64, 48)])
def test_sixels_read_back_are_the_image(size: tuple[int, int]):
    image = noise(*size)
    read = read_sixel(sixel(image))
    assert read.shape == (size[1], size[0], 3)
    assert np.abs(read - np.asarray(image)).max() <= 1.5  # colours are told in hundredths


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (9, 7)])
def test_half_blocks_read_back_are_the_image(size: tuple[int, int]):
    image = noise(*size)
    assert np.array_equal(read_blocks(blocks(image)), np.asarray(image))


def test_half_blocks_of_256_colours_take_near_ones():
    text = blocks(pillow.fromarray(np.array([[[255, 0, 0]], [[0, 95, 215]]], np.uint8)), true_colour=False)
    assert text == "\x1b[38;5;196;48;5;26m▀\x1b[0m\n"


@pytest.mark.parametrize("protocol", ["kitty", "sixel", "blocks"])
def test_boxes_stand_where_they_are_and_nothing_exceeds_the_screen(protocol: Protocol):
    shown = Screen(protocol=protocol, columns=41, rows=30)
    image = pillow.new("RGB", (400, 200), "white")
    boxes: list[Box | Quad] = [
        Box(250, 250, 750, 750, label="dog"),
        Quad(((0, 0), (100, 0), (100, 100), (0, 100))),
    ]
    plain, marked = shown.show(image), shown.show(image, boxes)
    read = {
        "kitty": lambda text: np.asarray(read_kitty(text)[1].convert("RGB")),
        "sixel": read_sixel,
        "blocks": read_blocks,
    }[protocol]
    assert (read(plain) > 250).all()
    pixels = read(marked).astype(int)
    height, width, _ = pixels.shape
    most = (40, 40) if protocol == "blocks" else (40 * CELL[0], 20 * CELL[1])
    assert (width, height) == fitted((400, 200), most) and abs(width - 2 * height) <= 2
    edge = pixels[height // 2, round(width * 0.25) - 1 : round(width * 0.25) + 2]
    assert edge.min() < 180  # the left side of the box is inked
    assert (pixels[height // 2, width // 2] > 250).all()  # its inside is not
    assert pixels[:2, :2].min() < 180  # nor is the quad's corner white


def test_an_image_of_any_shape_fits():
    assert fitted((10_000, 1), (80, 40)) == (80, 1) and fitted((1, 10_000), (80, 40)) == (1, 40)
    assert fitted((30, 30), (80, 40)) == (40, 40)
    assert Screen(protocol="none").show(noise(3, 3)) == ""
    wide: tuple[Protocol, ...] = ("kitty", "sixel", "blocks")
    for protocol in wide:
        assert Screen(protocol=protocol, columns=2, rows=1).show(noise(900, 2), [Box(0, 0, 999, 999)])


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "220401"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "210000"}, "blocks"),
        ({"TERM": "screen", "KITTY_WINDOW_ID": "1", "TMUX": "x"}, "blocks"),
        ({"TERM": "dumb"}, "none"),
        ({}, "none"),
    ],
)
def test_the_environment_tells(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # a keyboard that answers nothing
    assert detected(Terminal(), environment) == expected
    assert detected(io.StringIO(), environment) == "none"  # no terminal


def test_a_terminal_without_unicode_gets_no_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    terminal = Terminal()
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert detected(terminal, {"TERM": "xterm"}) == "none"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("\x1b[?62;4;6c", True),
        ("\x1b[?64;1c", False),
        ("\x1b[?4c", False),
        ("\x1b[?62;44c", False),
        ("", False),
    ],
)
def test_attribute_4_means_sixels(reply: str, expected: bool):
    assert has_sixels(reply) is expected


@pytest.mark.parametrize(("reply", "expected"), [(b"\x1b[?62;4;22c", "sixel"), (b"\x1b[?62;22c", "blocks")])
def test_a_terminal_is_asked_and_left_as_it_was(reply: bytes, expected: str, monkeypatch: pytest.MonkeyPatch):
    termios = pytest.importorskip("termios")
    outer, inner = pty.openpty()
    try:
        before = termios.tcgetattr(inner)
        asked: list[bytes] = []

        def answer() -> None:
            asked.append(os.read(outer, 16))
            os.write(outer, reply)

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            os.fdopen(os.dup(inner), "r") as keyboard,
            os.fdopen(os.dup(inner), "w", encoding="utf-8") as out,
        ):
            monkeypatch.setattr("sys.stdin", keyboard)
            assert detected(out, {"TERM": "xterm"}) == expected
        thread.join(60)
        assert asked == [b"\x1b[c"] and termios.tcgetattr(inner) == before
    finally:
        os.close(outer)
        os.close(inner)


def test_what_is_wanted_is_taken_and_what_is_unknown_is_told():
    assert screen("sixel", io.StringIO(), {}).protocol == "sixel"
    assert screen("auto", io.StringIO(), {"TERM": "xterm-kitty"}).protocol == "none"
    assert screen("blocks", io.StringIO(), {"COLORTERM": "truecolor"}).true_colour
    assert not screen("blocks", io.StringIO(), {}).true_colour
    with pytest.raises(ValueError, match="inline is 'ascii'; expected auto, kitty"):
        screen("ascii", io.StringIO(), {})
