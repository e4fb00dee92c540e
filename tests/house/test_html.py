"""One module makes HTML pages; what is text stays text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl import html
from qwenvl.html import Html, element

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script>\" onload='x' & \x00 </style></title>"


class Found(HTMLParser):
    """The elements of a page, and all of its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_text_is_escaped_wherever_it_stands() -> None:
    found = Found(
        html.page(
            EVIL,
            element("p", EVIL, title=EVIL, class_=EVIL),
            html.table([EVIL, "n"], [[EVIL, "1"]], classes=["", EVIL]),
            html.figure([html.image(Image.new("RGB", (4, 4)), 8)], [EVIL, html.BR, EVIL], right=False),
            EVIL,
            lead=EVIL,
        )
    )
    tags = [tag for tag, _ in found.elements]
    assert "script" not in tags and tags.count("style") == 1
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert "".join(found.said).count(EVIL.replace("\x00", "\x00")) >= 8


@given(st.text())
def test_what_goes_in_comes_out(said: str) -> None:
    (tag, attributes), *more = Found(element("p", said, title=said or "x")).elements
    assert (tag, more) == ("p", [])
    assert (
        attributes["title"] == (said or "x").replace("\r\n", "\n").replace("\r", "\n")
        or "\r" in said
        or "\0" in said
    )


def test_markup_is_markup_once() -> None:
    bold = element("b", "a < b")
    assert bold == "<b>a &lt; b</b>"
    assert html.text(bold) is bold
    assert html.join([bold, "<"], Html("<br>")) == "<b>a &lt; b</b><br>&lt;"
    assert element("td", "x", class_="") == "<td>x</td>"


@pytest.mark.parametrize("name", ["script src=x", "", "on load", "1"])
def test_a_tag_is_a_name(name: str) -> None:
    with pytest.raises(AssertionError):
        element(name)


def test_an_image_is_in_the_page_and_no_larger_than_asked() -> None:
    shown = html.image(Image.new("L", (400, 100)), 40)
    assert shown.startswith('<img alt="" src="data:image/webp;base64,')


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a | b", r"a \| b"),
        ("<script>", "&lt;script&gt;"),
        ("![x](y)", r"!\[x\](y)"),
        ("a\n# b", "a # b"),
        ("a_b", r"a\_b"),
    ],
)
def test_text_in_markdown_is_text(said: str, shown: str) -> None:
    assert html.markdown(said) == shown


def test_no_other_module_writes_pages_of_its_own() -> None:
    """One style, one way to escape: a second `<!doctype html>` would be a second house."""
    alone = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "qwenvl").rglob("*.py")
        if re.search(
            r"<!doctype html>|<style|html import escape",
            path.read_text("utf-8"),
            re.IGNORECASE | re.MULTILINE,
        )
    }
    assert alone == {"qwenvl/html.py"}
