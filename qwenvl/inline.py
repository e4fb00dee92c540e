"""Images in a terminal: kitty's graphics, sixels, or half blocks of colour where it knows neither.

```
kitty    ESC _G a=T,f=100,c=<columns> ; <PNG in base64, 4096 characters a piece> ESC \\
sixel    ESC P q "1;1;w;h  #<colour>;2;<r>;<g>;<b> ...  six rows at a time, colour by colour  ESC \\
blocks   one cell shows two pixels: the upper half block in one colour on a ground of the other
```
What a terminal can show is told by its environment, or by its own reply to "what are you?" (DA1), which every terminal
understands; nothing is asked of what is no terminal.
"""

import base64
import io
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image as pillow

from qwenvl.drawing import draw_boxes
from qwenvl.markup import Box, Quad

Protocol: TypeAlias = Literal["kitty", "sixel", "blocks", "none"]

PIECE = 4096
"""Characters of base64 in one of kitty's escape sequences, at most."""

COLOURS = 255
"""Of a sixel image."""

CELL = (8, 16)
"""Pixels of a character cell where the terminal does not tell."""

REPLY_SECONDS = 0.3
"""How long a terminal may take to say what it is."""


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What a terminal can show."""

    protocol: Protocol
    columns: int = 80
    rows: int = 24
    cell: tuple[int, int] = CELL
    """Width and height of a character cell in pixels."""
    true_colour: bool = True
    """Whether 24-bit colours are understood; the 256 of xterm otherwise."""

    def show(self, image: pillow.Image, boxes: Sequence[Box | Quad] = ()) -> str:
        """The image with these boxes as text for the terminal, of two thirds of its height at most; "" for `none`.

        Boxes are drawn after the image was made small, so that lines and letters stay readable; half blocks have no
        place for letters.
        """
        if self.protocol == "none":
            return ""
        columns, rows = min(self.columns - 1, 100), max(self.rows * 2 // 3, 4)
        if self.protocol == "blocks":
            width, height = fitted(image.size, (columns, 2 * rows))
            bare = [replace(box, label=None, score=None) for box in boxes]
            large = image.convert("RGB").resize((2 * width, 2 * height), pillow.Resampling.LANCZOS)
            small = (draw_boxes(large, bare) if bare else large).reduce(2)
            return blocks(small, true_colour=self.true_colour)
        most = (columns * self.cell[0], rows * self.cell[1])
        small = image.convert("RGB").resize(fitted(image.size, most), pillow.Resampling.LANCZOS)
        small = draw_boxes(small, boxes) if boxes else small
        return (
            kitty(small, math.ceil(small.width / self.cell[0])) if self.protocol == "kitty" else sixel(small)
        )


def fitted(size: tuple[int, int], most: tuple[int, int]) -> tuple[int, int]:
    """Width and height in the same proportion within `most`; a side is never less than 1."""
    scale = min(most[0] / size[0], most[1] / size[1])
    return max(1, min(most[0], round(size[0] * scale))), max(1, min(most[1], round(size[1] * scale)))


# === The three ways ===


def kitty(image: pillow.Image, columns: int) -> str:
    """Kitty's graphics protocol: the image over so many columns, as a PNG in pieces."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    heads = [f"a=T,f=100,q=2,c={columns},"] + [""] * (len(pieces) - 1)
    return (
        "".join(
            f"\x1b_G{head}m={int(number < len(pieces) - 1)};{piece}\x1b\\"
            for number, (head, piece) in enumerate(zip(heads, pieces, strict=True))
        )
        + "\n"
    )


def sixel(image: pillow.Image) -> str:
    """DEC sixels: bands of six rows, each colour of a band in one run over it."""
    indexed = image.convert("RGB").quantize(COLOURS, dither=pillow.Dither.NONE)
    pixels = np.asarray(indexed)
    palette = np.asarray(indexed.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    used = np.unique(pixels)
    colours = "".join(
        "#{};2;{};{};{}".format(c, *(round(int(v) * 100 / 255) for v in palette[c])) for c in used
    )
    bands = "-".join(_band(pixels[top : top + 6]) for top in range(0, len(pixels), 6))
    return f'\x1bPq"1;1;{image.width};{image.height}{colours}{bands}\x1b\\\n'


def _band(pixels: UInt8[np.ndarray, "rows columns"]) -> str:
    """Up to six rows: for every colour, the bits of each column that have it."""
    weights = (1 << np.arange(len(pixels)))[:, None]
    runs = []
    for colour in np.unique(pixels):
        bits = ((pixels == colour) * weights).sum(axis=0)
        starts = np.flatnonzero(np.diff(bits, prepend=-1))
        lengths = np.diff(starts, append=len(bits))
        runs.append(
            f"#{colour}"
            + "".join(_run(chr(63 + int(bits[s])), int(n)) for s, n in zip(starts, lengths, strict=True))
        )
    return "$".join(runs)


def _run(symbol: str, count: int) -> str:
    return f"!{count}{symbol}" if count > 3 else symbol * count


def blocks(image: pillow.Image, *, true_colour: bool = True) -> str:
    """Two pixels a character: `▀` in the colour of the upper on the lower's; a last odd row has no ground."""
    pixels = np.asarray(image.convert("RGB"))
    return "".join(
        "".join(_cells(pixels[top], pixels[top + 1] if top + 1 < len(pixels) else None, true_colour))
        + "\x1b[0m\n"
        for top in range(0, len(pixels), 2)
    )


def _cells(
    upper: UInt8[np.ndarray, "columns 3"], lower: UInt8[np.ndarray, "columns 3"] | None, true_colour: bool
) -> Iterator[str]:
    before = ""
    for column, over in enumerate(upper):
        under = "" if lower is None else ";48;" + _colour(lower[column], true_colour)
        colours = f"\x1b[38;{_colour(over, true_colour)}{under}m"
        yield ("" if colours == before else colours) + "▀"
        before = colours


def _colour(pixel: UInt8[np.ndarray, "3"], true_colour: bool) -> str:
    red, green, blue = map(int, pixel)
    if true_colour:
        return f"2;{red};{green};{blue}"
    cube = [max(0, (value - 35) // 40) for value in (red, green, blue)]  # xterm's levels: 0, 95, 135 ... 255
    return f"5;{16 + 36 * cube[0] + 6 * cube[1] + cube[2]}"


# === What the terminal can do ===


def screen(wanted: str, output: Any, environment: Mapping[str, str] | None = None) -> Screen:
    """The terminal behind `output`; `wanted` is a protocol, or `auto` for the best that it has.

    Where `output` is no terminal, `auto` is `none`.
    """
    environment = os.environ if environment is None else environment
    protocol: Protocol
    if wanted != "auto":
        if wanted not in ("kitty", "sixel", "blocks", "none"):
            raise ValueError(f"inline is {wanted!r}; expected auto, kitty, sixel, blocks or none.")
        protocol = wanted  # type: ignore[assignment]
    else:
        protocol = detected(output, environment)
    columns, rows = shutil.get_terminal_size()
    return Screen(
        protocol=protocol,
        columns=columns,
        rows=rows,
        cell=_cell(output),
        true_colour=environment.get("COLORTERM") in ("truecolor", "24bit") or protocol != "blocks",
    )


def detected(output: Any, environment: Mapping[str, str]) -> Protocol:
    """The best way to show an image on what `output` writes to."""
    if not output.isatty() or environment.get("TERM", "dumb") == "dumb":
        return "none"
    if not (
        environment.get("TMUX") or environment.get("STY")
    ):  # multiplexers pass kitty's sequences on only if told
        konsole = environment.get("KONSOLE_VERSION", "")
        if (
            "KITTY_WINDOW_ID" in environment
            or environment.get("TERM") in ("xterm-kitty", "xterm-ghostty")
            or environment.get("TERM_PROGRAM") in ("WezTerm", "ghostty")
            or (konsole.isdecimal() and int(konsole) >= 220400)
        ):
            return "kitty"
    if has_sixels(_reply(output)):
        return "sixel"
    return "blocks" if "utf" in (output.encoding or "").lower() else "none"


def has_sixels(reply: str) -> bool:
    """Whether a reply to DA1, such as `ESC [ ? 62 ; 4 c`, names attribute 4."""
    attributes = re.search(r"\x1b\[\?([0-9;]*)c", reply)
    return attributes is not None and "4" in attributes[1].split(";")[1:]


def _reply(output: Any) -> str:
    """What the terminal answers to DA1 on the standard input; "" if it is none or stays silent."""
    try:
        import select
        import termios
        import tty

        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
    except (ImportError, OSError, ValueError, termios.error):
        return ""
    reply = ""
    try:
        tty.setcbreak(keyboard, termios.TCSADRAIN)
        output.write("\x1b[c")
        output.flush()
        while not reply.endswith("c") and select.select([keyboard], [], [], REPLY_SECONDS)[0]:
            if not (read := os.read(keyboard, 64)):
                break
            reply += read.decode("ascii", "replace")
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
    return reply


def _cell(output: Any) -> tuple[int, int]:
    """Pixels of a character cell, as the terminal's driver knows them."""
    try:
        import fcntl
        import struct
        import termios

        size = fcntl.ioctl(output.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("HHHH", size)
    except (ImportError, OSError, ValueError):
        return CELL
    return (
        (width // columns, height // rows)
        if rows and columns and width >= columns and height >= rows
        else CELL
    )
