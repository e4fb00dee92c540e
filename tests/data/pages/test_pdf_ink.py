"""F-103: text of a PDF that nobody sees is no line; what is drawn twice is read once."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.colors import Color, black, white
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen import canvas

from qwenvl.data.synth.pages import pdf
from qwenvl.data.synth.pages.export import funnel, write_pages
from qwenvl.data.synth.pages.page import Page
from qwenvl.data.synth.pages.pdf import pdf_pages
from qwenvl.data.synth.pages.rules import Limits

ANY = Limits(fewest_characters=0, smallest_side=1)
Draw = Callable[[canvas.Canvas], None]


def page_of(*draw: Draw) -> Page:
    buffer = BytesIO()
    paper = canvas.Canvas(buffer, pagesize=(400, 300))
    for each in draw:
        paper.saveState()
        paper.setFont("Helvetica", 14)
        each(paper)
        paper.restoreState()
    paper.showPage()
    paper.save()
    ((_, page),) = pdf_pages(buffer.getvalue(), limits=ANY)
    assert isinstance(page, Page)
    return page


def texts(page: Page) -> list[str]:
    return [line.text for line in page.lines]


def seen(paper: canvas.Canvas) -> None:
    paper.setFillColor(black)
    paper.drawString(30, 200, "Everybody sees this")


def coloured(colour: Color, below: Color = white) -> Draw:
    def draw(paper: canvas.Canvas) -> None:
        paper.setFillColor(below)
        paper.rect(20, 80, 300, 50, fill=1, stroke=0)
        paper.setFillColor(colour)
        paper.drawString(30, 100, "Nobody sees this")

    return draw


def in_mode_3(text: str, y: float = 100) -> Draw:
    def draw(paper: canvas.Canvas) -> None:
        written = paper.beginText(30, y)
        written.setFont("Helvetica", 14)
        written.setTextRenderMode(3)
        written.textOut(text)
        paper.drawText(written)

    return draw


def covered(paper: canvas.Canvas) -> None:
    paper.drawString(30, 100, "Nobody sees this")
    paper.setFillColor(white)
    paper.rect(20, 90, 200, 30, fill=1, stroke=0)


def covered_by_a_photo(paper: canvas.Canvas) -> None:
    paper.drawString(30, 100, "Nobody sees this")
    levels = np.random.default_rng(0).integers(0, 255, (30, 200, 3), dtype=np.uint8)
    paper.drawImage(ImageReader(Image.fromarray(levels)), 20, 90, 200, 30)


def in_a_form(paper: canvas.Canvas) -> None:
    paper.beginForm("form")
    paper.setFont("Helvetica", 14)
    paper.setFillColor(white)
    paper.drawString(30, 100, "Nobody sees this")
    paper.endForm()
    paper.doForm("form")


@pytest.mark.parametrize(
    "unseen",
    [
        in_mode_3("Nobody sees this"), coloured(white), coloured(Color(1, 1, 0.97)), coloured(Color(0, 0, 0, alpha=0)),
        coloured(Color(0, 0, 0, alpha=0.02)), coloured(Color(0.3, 0.3, 0.3), Color(0.3, 0.3, 0.3)), covered,
        covered_by_a_photo, in_a_form,
    ],
    ids=["mode 3", "white", "nearly white", "transparent", "nearly transparent", "grey on grey", "covered",
         "under a photo", "in a form"],
)  # fmt: skip
def test_f103_text_that_leaves_no_ink_is_dropped_and_counted(unseen: Draw) -> None:
    page = page_of(unseen, seen)
    assert texts(page) == ["Everybody sees this"]
    assert page.unseen == 1


def ruled(y: float) -> Draw:
    return lambda paper: paper.line(20, y, 300, y)


def with_a_note(paper: canvas.Canvas) -> None:
    paper.linkRect("", "nowhere", (20, 190, 200, 215), relative=0)
    paper.bookmarkPage("nowhere")


def with_a_rule_in_a_form(paper: canvas.Canvas) -> None:
    paper.beginForm("form")
    paper.line(20, 205, 300, 205)
    paper.endForm()
    paper.doForm("form")


@pytest.mark.parametrize(
    ("other", "times"),
    [
        (seen, 1),
        (ruled(100), 1),
        (ruled(205), 2),
        (with_a_note, 2),
        (with_a_rule_in_a_form, 2),
        (in_a_form, 1),
    ],
    ids=["text", "a rule elsewhere", "a rule in the text", "a note", "a rule in a form", "text in a form"],
)
def test_a_page_is_drawn_again_only_where_something_lies_in_the_box_of_a_line(
    other: Draw, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    draw = pdf._drawn
    monkeypatch.setattr(pdf, "_drawn", lambda page, scale: drawn.append(scale) or draw(page, scale))
    assert texts(page_of(seen, other))[0] == "Everybody sees this"
    assert len(drawn) == times


@pytest.mark.parametrize("colour", [Color(0.8, 0.8, 0.8), Color(1, 1, 0.6), Color(0, 0, 0, alpha=0.3)])
def test_pale_text_that_can_be_read_stays(colour: Color) -> None:
    assert texts(page_of(coloured(colour), seen)) == ["Nobody sees this", "Everybody sees this"]


def test_white_on_black_stays() -> None:
    assert texts(page_of(coloured(white, black))) == ["Nobody sees this"]


def test_f103_the_hidden_text_of_a_scan_stays_where_the_scan_has_ink() -> None:
    def scan(paper: canvas.Canvas) -> None:
        image = Image.new("L", (800, 600), 255)
        ImageDraw.Draw(image).text((60, 368), "A scanned line", fill=0, font=ImageFont.load_default(28))
        paper.drawImage(ImageReader(image), 0, 0, 400, 300)

    page = page_of(scan, in_mode_3("A scanned line", 103), in_mode_3("Nothing is there", 203))
    assert texts(page) == ["A scanned line"]
    assert page.unseen == 1


def letters(paper: canvas.Canvas, shifts: list[tuple[float, float]]) -> None:
    x = 30.0
    for letter in "Heading of it all":
        for dx, dy in shifts:
            paper.drawString(x + dx, 100 + dy, letter)
        x += paper.stringWidth(letter, "Helvetica", 14)


def passes(paper: canvas.Canvas, shifts: list[tuple[float, float]]) -> None:
    for shift in shifts:
        letters(paper, [shift])


def whole(paper: canvas.Canvas, shifts: list[tuple[float, float]]) -> None:
    for dx, dy in shifts:
        paper.drawString(30 + dx, 100 + dy, "Heading of it all")


@pytest.mark.parametrize("way", [letters, passes, whole])
@pytest.mark.parametrize(
    "shifts", [[(0, 0)], [(0, 0), (0, 0)], [(0, 0), (0.4, 0)], [(0, 0), (0.8, 0)], [(0, 0), (0.3, 0), (0.6, 0)],
               [(0, 0), (0.7, -0.7)]]
)  # fmt: skip
def test_f103_letters_drawn_twice_to_look_bold_are_read_once(
    way: Callable[[canvas.Canvas, list[tuple[float, float]]], None], shifts: list[tuple[float, float]]
) -> None:
    """F-103: they came out as "H ead i n g"."""
    assert texts(page_of(lambda paper: way(paper, shifts), seen)) == [
        "Heading of it all",
        "Everybody sees this",
    ]


def test_letters_that_are_double_by_right_stay() -> None:
    words = "aa bb ll ii book 1100 oo ..."
    assert texts(page_of(lambda paper: paper.drawString(30, 100, words))) == [words]


def test_the_same_words_on_two_lines_are_two_lines() -> None:
    lines: list[Draw] = [lambda paper, y=y: paper.drawString(30, y, "The same words") for y in (100, 88, 76)]
    assert texts(page_of(*lines)) == ["The same words"] * 3


def test_f103_the_funnel_tells_of_lines_that_nobody_sees(tmp_path) -> None:
    counts = write_pages([("a", page_of(covered, seen)), ("b", page_of(seen))], tmp_path, tar=False)
    assert counts == {"read": 2, "kept": 2, "lines": 2, "unseen lines": 1}
    assert "2 lines of text, 1 more that nobody sees left out" in funnel(counts)
