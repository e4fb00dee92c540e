"""One self-contained HTML page about a demo run: scores, answers with boxes drawn, loss curves, what it ran on."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image as pillow

from qwenvl.evaluation.report import inline, sized

SIDE = 336
"""Pixels of the longer side of a picture."""

POINTS = 300
"""About so many points are enough for a curve of 320 pixels."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1c1e21 }
h1 { font-size: 1.7rem; margin-bottom: 0 }
h2 { margin-top: 2.4rem; font-size: 1.25rem }
p.lead { color: #555; margin-top: .2rem }
table { border-collapse: collapse }
th, td { padding: .35rem .9rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
svg { background: #fafafa; border: 1px solid #e4e4e4 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1rem }
.card { border: 1px solid #ddd; border-radius: 8px; overflow: hidden; font-size: .9rem }
.card img { width: 100%; display: block }
.card div { padding: .5rem .7rem; overflow-wrap: anywhere }
.right { border-top: 4px solid #2e9e4f }
.wrong { border-top: 4px solid #c93737 }
.asked { color: #555 }
.wanted { color: #c93737 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem }
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A picture, what was asked and answered; `right` is None where nothing was scored."""

    image: pillow.Image
    asked: str
    answered: str
    expected: str = ""
    right: bool | None = None


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page; sections are (heading, HTML)."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>\n{content}\n" for heading, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>\n'
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n{body}</html>\n'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others numbers."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def cards(shown: Iterable[Card]) -> str:
    """Pictures side by side, each with its question and answer; wrong ones show what was expected."""
    return f'<div class="cards">{"".join(map(_card, shown))}</div>'


def _card(card: Card) -> str:
    state = {True: " right", False: " wrong", None: ""}[card.right]
    wanted = (
        f'<br><span class="wanted">expected {html.escape(card.expected)}</span>'
        if card.right is False
        else ""
    )
    return (
        f'<div class="card{state}"><img alt="" src="{inline(sized(card.image, SIDE))}"><div>'
        f'<span class="asked">{html.escape(card.asked)}</span><br>{html.escape(card.answered)}{wanted}</div></div>\n'
    )


def curve_sheet(losses: Mapping[str, Sequence[float]], width: int = 320, height: int = 180) -> str:
    """All curves side by side as one SVG file, names below."""
    parts = [
        f'<g transform="translate({10 + k % 3 * (width + 20)},{10 + k // 3 * height})">{_curve(values)}'
        f'<text x="36" y="168" font-size="13">{html.escape(name)}</text></g>'
        for k, (name, values) in enumerate(losses.items())
    ]
    size = 3 * (width + 20), 10 + -(-len(losses) // 3) * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def curves(losses: Mapping[str, Sequence[float]]) -> str:
    """A loss curve per stage, smoothed over a fortieth of its updates, as SVG."""
    drawn = (
        f"<div>{_curve(values)}<br><b>{html.escape(name)}</b></div>"
        for name, values in losses.items()
        if values
    )
    return f'<div class="curves">{"".join(drawn)}</div>'


def _curve(values: Sequence[float], width: int = 320, height: int = 150) -> str:
    window = max(1, len(values) // 40)
    ends = range(1, len(values) + 1, max(1, len(values) // POINTS))
    smooth = [sum(part) / len(part) for end in ends if (part := values[max(0, end - window) : end])]
    top, across = max(smooth) or 1.0, max(1, len(smooth) - 1)
    points = " ".join(
        f"{36 + (width - 46) * k / across:.1f},{10 + (height - 30) * (1 - value / top):.1f}"
        for k, value in enumerate(smooth)
    )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-size="11" fill="#777">'
        f'<polyline points="{points}" fill="none" stroke="#3465d0" stroke-width="1.8"/>'
        f'<text x="4" y="16">{top:.2f}</text><text x="4" y="{height - 16}">0</text>'
        f'<text x="36" y="{height - 4}">1</text><text x="{width - 8}" y="{height - 4}" text-anchor="end">'
        f"{len(values)} updates</text>"
        f'<text x="{width - 8}" y="20" text-anchor="end">last {smooth[-1]:.3f}</text></svg>'
    )
