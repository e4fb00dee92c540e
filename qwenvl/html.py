"""HTML pages: one style for the demo's report, the gallery of cleaning, the book of samples and the score card.

A page is one file without scripts, links or anything fetched. Text is escaped because it is text: every function takes
`str` as text and `Html` as markup, so what comes from outside (captions, answers, names of models) cannot become markup
by being forgotten.

    page("Score card", element("p", caption, class_="soft"), table(["n"], [["1"]]))
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qwenvl.terminal import printable

if TYPE_CHECKING:
    from PIL.Image import Image

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #2a9d4a; --bad: #d1383d; --blue: #4d7cc3 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem }
p.lead { margin-top: .2rem } .soft, p.lead { opacity: .7 } small { font-size: .8em }
.good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; vertical-align: bottom } td.value { font-weight: 700 }
th:first-child, td:first-child, th.text, td.text { text-align: left; white-space: normal }
.wide { overflow-x: auto } .bar { background: var(--blue); height: 9px; display: inline-block; border-radius: 2px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden }
figure.right { border-top: 4px solid var(--good) } figure.wrong { border-top: 4px solid var(--bad) }
figure img { width: 100%; display: block; background: var(--soft) }
figcaption { padding: .5rem .7rem; font-size: 13px; overflow-wrap: anywhere }
svg { max-width: 100% } svg text { fill: currentColor }
"""
"""Colours follow the reader's light or dark; the names of classes are what the pages share."""

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class Html(str):
    """Markup, as it stands in a page."""

    __slots__ = ()


def text(content: str) -> Html:
    """Text as markup that shows it, whatever is in it; `Html` is itself."""
    return content if isinstance(content, Html) else Html(html.escape(content))


def join(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other; those that are text are escaped."""
    return Html(text(between).join(map(text, parts)))


def element(tag: str, *content: str, **attributes: str | int) -> Html:
    """An element: `element("td", "a < b", class_="value")`, without the underscore; no empty class."""
    assert _NAME.fullmatch(tag), tag
    named = {name.removesuffix("_").replace("_", "-"): value for name, value in attributes.items()}
    assert all(map(_NAME.fullmatch, named)), named
    shown = "".join(
        f' {name}="{html.escape(str(value))}"'
        for name, value in named.items()
        if (name, value) != ("class", "")
    )
    if tag in ("img", "br"):
        assert not content, f"<{tag}> holds nothing"
        return Html(f"<{tag}{shown}>")
    return Html(f"<{tag}{shown}>{join(content)}</{tag}>")


BR = element("br")


def page(title: str, *body: str, lead: str = "", style: str = "") -> str:
    """A whole page: the title, `lead` under it, then the body. `style` is added to the common one."""
    head = join(
        [
            Html(
                '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            ),
            element("title", title),
            element("style", Html(STYLE + style)),
        ]
    )
    first = [element("h1", title), *([element("p", lead, class_="lead")] if lead else [])]
    shown = element("body", join([*first, *body], Html("\n")))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{shown}</html>\n'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> Html:
    """A table whose first column is text and whose others are numbers; `classes` are those of the columns.

    A cell that is an element `td` already stays as it is.
    """
    kinds = [*classes, *[""] * (len(header) - len(classes))]
    head = element(
        "tr", *(element("th", cell, class_=kind) for cell, kind in zip(header, kinds, strict=True))
    )
    lines = (
        element("tr", *(_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows
    )
    return element("div", element("table", head, *lines), class_="wide")


def _cell(content: str, kind: str) -> Html:
    if isinstance(content, Html) and content.startswith("<td"):
        return content
    return element("td", content, class_=kind)


def image(shown: "Image", side: int, *, enlarge: bool = False) -> Html:
    """An image in the page itself, at most `side` pixels along its longer side (exactly so with `enlarge`)."""
    from PIL.Image import Resampling

    factor = side / max(shown.size)
    if factor < 1 or enlarge:
        size = max(1, round(shown.width * factor)), max(1, round(shown.height * factor))
        shown = shown.resize(size, Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.convert("RGB").save(buffer, "WEBP", quality=80)
    return element(
        "img", alt="", src="data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    )


def figure(images: Iterable[str], caption: Iterable[str], right: bool | None = None) -> Html:
    """Images over their caption, in parts; marked as right or wrong where it is one of them."""
    mark = {True: "right", False: "wrong", None: ""}[right]
    return element("figure", *images, element("figcaption", *caption), class_=mark)


def markdown(content: str) -> str:
    """Text as Markdown that shows it on one line: no markup, no link, no new cell of a table."""
    line = html.escape(printable(" ".join(content.split())), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
