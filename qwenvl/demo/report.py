"""One self-contained HTML page about a demo run: scores, answers with boxes drawn, loss curves, what it ran on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image as pillow

from qwenvl import html
from qwenvl.html import Html, element

SIDE = 336
"""Pixels of the longer side of an image."""

POINTS = 300
"""About so many points are enough for a curve of 320 pixels."""

STYLE = """
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem }
.curves svg { background: var(--soft); border: 1px solid var(--line) }
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """An image, what was asked and answered; `right` is None where nothing was scored."""

    image: pillow.Image
    asked: str
    answered: str
    expected: str = ""
    right: bool | None = None


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page; sections are (heading, content)."""
    body = (html.join([element("h2", heading), content], Html("\n")) for heading, content in sections)
    return html.page(title, *body, lead=lead, style=STYLE)


def cards(shown: Iterable[Card]) -> Html:
    """Images side by side, each with its question and answer; wrong ones show what was expected."""
    return element("div", *map(_card, shown), class_="grid")


def _card(card: Card) -> Html:
    said: list[str] = [element("span", card.asked, class_="soft"), html.BR, card.answered]
    if card.right is False:
        said += [html.BR, element("span", f"expected {card.expected}", class_="bad")]
    return html.figure([html.image(card.image, SIDE, enlarge=True)], said, card.right)


def curve_sheet(losses: Mapping[str, Sequence[float]], width: int = 320, height: int = 180) -> str:
    """All curves side by side as one SVG file, names below."""
    parts = [
        element(
            "g",
            _curve(values),
            element("text", name, x=36, y=168, font_size=13),
            transform=f"translate({10 + k % 3 * (width + 20)},{10 + k // 3 * height})",
        )
        for k, (name, values) in enumerate(losses.items())
    ]
    size = {"width": 3 * (width + 20), "height": 10 + -(-len(losses) // 3) * height}
    content = html.join(["", *parts, ""], Html("\n"))
    return (
        element("svg", content, xmlns="http://www.w3.org/2000/svg", font_family="sans-serif", **size) + "\n"
    )


def curves(losses: Mapping[str, Sequence[float]]) -> Html:
    """A loss curve per stage, smoothed over a fortieth of its updates, as SVG."""
    drawn = (
        element("div", _curve(values), html.BR, element("b", name))
        for name, values in losses.items()
        if values
    )
    return element("div", *drawn, class_="curves")


def _curve(values: Sequence[float], width: int = 320, height: int = 150) -> Html:
    window = max(1, len(values) // 40)
    ends = range(1, len(values) + 1, max(1, len(values) // POINTS))
    smooth = [sum(part) / len(part) for end in ends if (part := values[max(0, end - window) : end])]
    top, across = max(smooth) or 1.0, max(1, len(smooth) - 1)
    points = " ".join(
        f"{36 + (width - 46) * k / across:.1f},{10 + (height - 30) * (1 - value / top):.1f}"
        for k, value in enumerate(smooth)
    )
    return element(
        "svg",
        element("polyline", points=points, fill="none", stroke="#3465d0", stroke_width="1.8"),
        element("text", f"{top:.2f}", x=4, y=16),
        element("text", "0", x=4, y=height - 16),
        element("text", "1", x=36, y=height - 4),
        element("text", f"{len(values)} updates", x=width - 8, y=height - 4, text_anchor="end"),
        element("text", f"last {smooth[-1]:.3f}", x=width - 8, y=20, text_anchor="end"),
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        font_size=11,
        fill="#777",
    )
