"""Drawings to pixels, vectors by resvg, in processes that a drawing without end cannot hold up.

A drawing is a stranger's program: it may nest itself a million times, name files and hosts, or be a mile long. What
names anything outside itself, or holds an image larger than images may be, is refused before it is rendered; what takes
longer than `PATIENCE` or more than `MEMORY` is given up.
"""

import base64
import io
import re
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import NamedTuple

from PIL import Image as pillow

from qwenvl import images
from qwenvl.processes import WorkerPool, limit_memory

PATIENCE = 10.0
"""Seconds for one drawing; most take a thousandth of that, the slowest of these sets a fiftieth."""

LARGEST = 4 << 20
"""Characters of a drawing."""

MEMORY = 3072
"""Megabytes that a process may take beyond those it starts with."""

ELONGATED = 100.0
"""Times that one side of a drawing is as long as the other, at most."""

AT_ONCE = 32
"""Drawings that go to a process together."""

_LINK = re.compile(
    r"""\b(?:href|src)\s*=\s*(["'])(?!#|data:image/(?:png|jpe?g|gif|webp);base64,)\s*\S""", re.IGNORECASE
)
_RULE = re.compile(r"url\(\s*[\"']?(?!#|[\"']?data:image/)[^)\s]|@import", re.IGNORECASE)
_INSIDE = re.compile(r"data:image/[\w.+-]*;base64,([A-Za-z0-9+/=\s]*)", re.IGNORECASE)
_ROOT = re.compile(r"<svg\b[^>]*>", re.IGNORECASE)
_NUMBER = r"\d*\.?\d+(?:e[+-]?\d{1,4})?"
_SIDE = rf"""\s%s\s*=\s*["']\s*({_NUMBER})\s*(?:px)?\s*["']"""
_VIEW = re.compile(
    rf"""\sviewBox\s*=\s*["']\s*\S+?[\s,]+\S+?[\s,]+({_NUMBER})[\s,]+({_NUMBER})""", re.IGNORECASE
)


class Drawing(NamedTuple):
    """A drawing on its way: the text of an SVG, or an image file."""

    key: str
    svg: str
    file: bytes = b""


class Rendered(NamedTuple):
    """What became of it."""

    key: str
    image: pillow.Image | None
    problem: str = ""


def problem_of(text: str) -> str | None:
    """Why a drawing is not rendered, or None: a few words that are counted."""
    if len(text) > LARGEST:
        return "a drawing of more than 4 MB"
    if "<!DOCTYPE" in text.upper() and "<!ENTITY" in text.upper():
        return "a drawing that defines entities"
    if _LINK.search(text) or _RULE.search(text):
        return "a drawing that names a file or a host"
    if _is_elongated(text):
        return f"a drawing more than {ELONGATED:g} times as long as wide"
    return _problem_inside(text)


def _is_elongated(text: str) -> bool:
    """Whether sides that the root states in pixels, or else those of its view, are too far apart."""
    root = _ROOT.search(text)
    if root is None:
        return False
    stated = [re.search(_SIDE % name, root.group(), re.IGNORECASE) for name in ("width", "height")]
    view = _VIEW.search(root.group())
    if all(stated):
        sides = [float(side[1]) for side in stated if side is not None]
    elif view is not None:
        sides = [float(view[1]), float(view[2])]
    else:
        return False
    return min(sides) > 0 and max(sides) > ELONGATED * min(sides)


def _problem_inside(text: str) -> str | None:
    """Why an image that a drawing holds is none: its header says how large it is, whatever is drawn of it."""
    for held in _INSIDE.finditer(text):
        try:
            with images.opened(base64.b64decode(re.sub(r"\s", "", held[1]), validate=True)):
                pass
        except images.UnreadableImage as error:
            return f"a drawing that holds an image: {error.reason}"
        except ValueError:
            return "a drawing that holds an image: no image"
    return None


def render(text: str, side: int) -> pillow.Image:
    """The drawing with its transparency (RGBA), its longer side `side` pixels. Raises ValueError where it is none."""
    if (problem := problem_of(text)) is not None:
        raise ValueError(problem)
    small = _drawn(text, width=8)
    upright = small.height > small.width
    return _drawn(text, height=side) if upright else _drawn(text, width=side)


def _drawn(text: str, *, width: int | None = None, height: int | None = None) -> pillow.Image:
    import resvg_py

    drawn = resvg_py.svg_to_bytes(svg_string=text, width=width, height=height, skip_system_fonts=True)
    return pillow.open(io.BytesIO(bytes(drawn))).convert("RGBA")


def opened(file: bytes, side: int) -> pillow.Image:
    """An image file with its transparency (RGBA), its longer side at most `side` pixels; no image: ValueError."""
    with images.opened(file) as image:
        shown = image.convert("RGBA")
    shown.thumbnail((side, side), pillow.Resampling.LANCZOS)
    return shown


def rendered(drawings: Iterable[Drawing], side: int, processes: int = 2) -> Iterator[Rendered]:
    """Every drawing, in order. One that is refused, never ends or takes its process down is named; the rest goes on."""
    remaining = iter(drawings)
    with _Pool(processes) as pool:
        while chunk := list(islice(remaining, AT_ONCE * processes)):
            parts = [chunk[at : at + AT_ONCE] for at in range(0, len(chunk), AT_ONCE)]
            found = pool.run(parts, side)
            for part, results in zip(parts, found, strict=True):
                if results is not None:
                    yield from results
                    continue
                for drawing in part:  # one of them holds the others up: each by itself
                    alone = pool.run([[drawing]], side)[0]
                    yield alone[0] if alone else Rendered(drawing.key, None, "a drawing without end")


class _Pool:
    """Processes that are made when they are first needed, and anew after one was lost or stuck."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: WorkerPool | None = None

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, parts: list[list[Drawing]], side: int) -> list[list[Rendered] | None]:
        """The results of each part; None for one that was not ready in time."""
        if self._pool is None:
            self._pool = WorkerPool(self._processes, limit_memory, (MEMORY,))
            self._pool.submit(_part, [], side).result()  # the start of a process is nobody's fault
        futures = [self._pool.submit(_part, part, side) for part in parts]
        results: list[list[Rendered] | None] = []
        for future in futures:
            try:
                results.append(future.result(timeout=PATIENCE * max(1, len(parts[len(results)]) / 4)))
            except (TimeoutError, BrokenProcessPool):
                results.append(None)
        if None in results:
            self._end()
        return results

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.kill()
            self._pool = None


def _part(drawings: list[Drawing], side: int) -> list[Rendered]:
    return [_one(drawing, side) for drawing in drawings]


def _one(drawing: Drawing, side: int) -> Rendered:
    try:
        return Rendered(
            drawing.key, opened(drawing.file, side) if drawing.file else render(drawing.svg, side)
        )
    except images.UnreadableImage as error:
        return Rendered(drawing.key, None, error.reason)
    except (ValueError, OSError, MemoryError, pillow.DecompressionBombError) as error:
        known = problem_of(drawing.svg)
        return Rendered(drawing.key, None, known or f"no drawing ({str(error)[:80]})")
