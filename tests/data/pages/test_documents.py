"""PDF and web pages: boxes where the ink is, every rule by its own page, bad files counted and survived."""

import base64
import http.server
import importlib
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image
from reportlab.pdfgen import canvas

from qwenvl import cli
from qwenvl.data.records import Skipped
from qwenvl.data.synth.pages import html, pdf
from qwenvl.data.synth.pages.html import Browser, _decoded
from qwenvl.data.synth.pages.page import Line, Page
from qwenvl.data.synth.pages.pdf import pdf_pages
from qwenvl.data.synth.pages.pdf_files import pdf_files
from qwenvl.data.synth.pages.rules import Limits, first_reason, html_rules, pdf_rules
from qwenvl.data.tars import read_tar

T = TypeVar("T")

ANY = Limits(fewest_characters=0, smallest_side=1)
BROWSER = importlib.util.find_spec("playwright") and any(map(shutil.which, ("chromium", "google-chrome")))
with_browser = pytest.mark.skipif(
    not BROWSER,
    reason="no Chromium on this machine (apt-get install chromium): what lines.js finds is not checked",
)


def reasons(pages: Iterator[tuple[str, Page | Skipped]]) -> list[str | None]:
    return [page.kind if isinstance(page, Skipped) else None for _, page in pages]


def check_ink(page: Page, slack: float) -> None:
    """Every box is full of ink to within `slack` of its height, and outside of all boxes there is none."""
    dark = np.asarray(page.image.convert("L")) < 128
    for line in page.lines:
        (left, top), (right, bottom) = np.min(line.quad, 0), np.max(line.quad, 0)
        available = slack * min(bottom - top, right - left) + 1.5
        part = dark[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        assert len(rows), f"{line.text!r}: nothing is written there"
        short, long = (rows, columns) if part.shape[0] < part.shape[1] else (columns, rows)
        assert long[0] <= available, f"{line.text!r}"
        assert long[-1] >= max(part.shape) - 1 - available, f"{line.text!r}"
        assert short[0] <= available + 0.35 * min(part.shape), f"{line.text!r}"
        dark = dark.copy()
        dark[
            max(0, int(top - available)) : int(bottom + available) + 1,
            max(0, int(left - available)) : int(right + available) + 1,
        ] = 0
    assert not dark.any(), "ink outside of every box"


# ---- Rules ----


def page_of(text: str, size: tuple[int, int] = (600, 600)) -> Page:
    corners = ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0))
    return Page(image=Image.new("RGB", size), lines=(Line(text, corners),), source="pdf")


@pytest.mark.parametrize(
    ("text", "size", "of_pdf", "of_html"),
    [
        ("Just enough characters here", (600, 600), None, None),
        ("Just enough characters here", (600, 223), "a side below 224 px", "a side below 224 px"),
        ("Nineteen characters, no", (600, 600), "fewer than 20 characters", "fewer than 20 characters"),
        ("x" * 6001, (600, 600), "more than 6000 characters", "more than 6000 characters"),
        ("Just enough characters, \u0142", (600, 600), "characters of Latin Extended", None),
        ("Just enough characters, \u024f", (600, 600), "characters of Latin Extended", None),
        ("Just enough characters, \u00ff\u0250", (600, 600), None, None),
        ("Just enough characters, \ue000", (600, 600), *["characters of the Private Use Area"] * 2),
        ("Just enough characters, \uf8ff", (600, 600), *["characters of the Private Use Area"] * 2),
        ("Just enough characters, \ufffd", (600, 600), *["characters without Unicode"] * 2),
        ("足够多的中文字符才能留下来吗，应该是的吧好", (600, 600), None, None),
    ],
)
def test_rules_of_the_paper(
    text: str, size: tuple[int, int], of_pdf: str | None, of_html: str | None
) -> None:
    page = page_of(text.replace("Nineteen characters, no", "n i n e t e e n c h a r a c t e r"), size)
    assert first_reason(page, pdf_rules(Limits())) == of_pdf
    assert first_reason(page, html_rules(Limits())) == of_html


def test_limits_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="lower number first"):
        Limits(fewest_characters=10, most_characters=5)


# ---- PDF ----


def written(
    *texts: tuple[float, float, str], size=(400, 300), turn: float = 0, rotation: int = 0, **options
) -> bytes:
    buffer = BytesIO()
    paper = canvas.Canvas(buffer, pagesize=size, **options)
    for x, y, text in texts:
        paper.saveState()
        paper.translate(x, y)
        paper.rotate(turn)
        paper.setFont("Helvetica", 14)
        paper.drawString(0, 0, text)
        paper.restoreState()
    if rotation:
        paper.setPageRotation(rotation)
    paper.showPage()
    paper.save()
    return buffer.getvalue()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_lines_lie_on_their_ink_however_page_and_text_are_turned(rotation: int, turn: int) -> None:
    data = written((200, 150, "Harmonious text"), turn=turn, rotation=rotation)
    ((_, page),) = pdf_pages(data, limits=ANY)
    assert isinstance(page, Page)
    assert [line.text for line in page.lines] == ["Harmonious text"]
    check_ink(page, slack=0.3)
    first, second = np.array(page.lines[0].quad[:2])
    direction = np.degrees(np.arctan2(*(second - first)[::-1])) % 360  # clockwise on the image
    assert round(direction) % 360 == (rotation - turn) % 360


def test_runs_of_one_line_are_joined_and_columns_are_not() -> None:
    buffer = BytesIO()
    paper = canvas.Canvas(buffer, pagesize=(500, 200))
    text = paper.beginText(30, 100)
    for font, words in (("Helvetica", "An ordinary "), ("Helvetica-Bold", "bold"), ("Helvetica", " ending.")):
        text.setFont(font, 12)
        text.textOut(words)
    paper.drawText(text)
    paper.drawString(350, 100, "Column two   ")
    paper.save()
    ((_, page),) = pdf_pages(buffer.getvalue(), limits=ANY)
    assert isinstance(page, Page)
    assert [line.text for line in page.lines] == ["An ordinary bold ending.", "Column two"]
    check_ink(page, slack=0.3)


def test_a_page_of_resolution_and_at_most_so_large() -> None:
    ((_, page),) = pdf_pages(written((10, 10, "Hi"), size=(720, 360)), dpi=108.0, limits=ANY)
    assert isinstance(page, Page) and page.image.size == (1080, 540)
    ((_, page),) = pdf_pages(written((10, 10, "Hi"), size=(7200, 3600)), longest=800, limits=ANY)
    assert isinstance(page, Page) and page.image.size == (800, 400)


def test_bad_files_are_counted_with_a_reason_and_the_rest_survives(tmp_path: Path) -> None:
    good = written((20, 100, "A page that deserves to be kept"))
    (tmp_path / "a.pdf").write_bytes(good)
    (tmp_path / "b.pdf").write_bytes(written((20, 100, "A secret that nobody reads"), encrypt="password"))
    (tmp_path / "c.pdf").write_bytes(b"this is no PDF")
    (tmp_path / "d.pdf").write_bytes(good[: len(good) // 2])
    (tmp_path / "e.pdf").write_bytes(b"")
    (tmp_path / "f.pdf").write_bytes(written((20, 100, "A page with slanted text on it"), turn=30))
    (tmp_path / "g.pdf").write_bytes(written())
    (tmp_path / "z.pdf").write_bytes(good)
    found = reasons(pdf_files([*sorted(tmp_path.iterdir()), tmp_path / "missing.pdf"]))
    assert found[0] is None and found[-2] is None
    assert found[1:3] == ["PDF with a password", "broken PDF"]
    assert found[4] == "broken PDF"
    assert found[5:7] == ["text at an angle", "fewer than 20 characters"]
    assert found[-1] == "broken PDF"


def test_what_is_missing_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(pdf, "import_module", absent)
    monkeypatch.setattr(html, "import_module", absent)
    with pytest.raises(ValueError, match=r"pypdfium2, which is not installed; pip install 'qwenvl\[ocr\]'"):
        next(pdf_pages(b""))
    with pytest.raises(ValueError, match=r"playwright, which is not installed; pip install 'qwenvl\[ocr\]'"):
        Browser(executable="chromium")
    monkeypatch.setattr(html.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="apt-get install chromium"):
        Browser()


# ---- HTML ----


def elsewhere(work: Callable[[], T]) -> T:
    """The result of work in a thread of its own: Playwright allows one browser driver per thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(size=(800, 600), seconds=60.0, limits=ANY) as running:
        yield running


class ChromiumGone(Exception):
    """What the driver raises when the browser is not there any more."""


class NoChromium:
    """Plays driver, browser, context, page and session at once, for machines without a Chromium."""

    Error = ChromiumGone

    def __init__(
        self, message: list[dict[str, Any] | None], address: str = "about:blank", unseen: tuple[str, ...] = ()
    ) -> None:
        self.message, self.address, self.unseen = message, address, unseen
        self.shown: dict[str, Any] = {}
        self.blank = False
        self.size = (2000, 2000)
        self.clips: list[tuple[int, int, int, int]] = []
        self.killed = threading.Event()
        self.starts = 0
        self.context = self.chromium = self

    def launch(self, **options: Any) -> "NoChromium":
        self.starts += 1
        return self

    def send(self, method: str, wish: dict[str, Any] | None = None) -> dict[str, Any]:
        if method == "Page.captureScreenshot":
            assert wish is not None
            buffer = BytesIO()
            clip = wish["clip"]
            image = Image.new("RGB", self.size, "white")
            for text, *box, _ in [] if self.blank else self.shown["lines"]:
                if text not in self.unseen:
                    image.paste("black", (int(box[0]), int(box[1]), int(box[2]), int(box[3])))
            left, top = clip["x"], clip["y"]
            self.clips.append((left, top, left + clip["width"], top + clip["height"]))
            image.crop(self.clips[-1]).save(buffer, "JPEG")
            return {"data": base64.b64encode(buffer.getvalue()).decode()}
        if method == "Runtime.evaluate":
            assert wish is not None
            return {"result": {"value": self.evaluate(wish["expression"])}}
        processes = [{"id": 0, "type": "browser"}]
        return {"processInfo": processes, "frameTree": {"frame": {"id": "f"}}}

    def evaluate(self, program: str) -> Any:
        self.blank = html.WITHOUT_TEXT in program
        if self.blank or html.WITH_TEXT in program:
            return None if self.blank else self.address
        found = self.message.pop(0)
        if found is None:  # a page that never ends: until somebody kills the browser
            assert self.killed.wait(30)
            raise ChromiumGone("Target closed")
        self.shown = found
        return found

    def on(self, event: str, react: Any) -> None: ...

    def close(self) -> None:
        if self.killed.is_set():
            self.killed.clear()
            raise ChromiumGone("already gone")

    def itself(self, *args: Any, **options: Any) -> "NoChromium":
        return self

    sync_playwright = start = new_browser_cdp_session = new_context = new_page = new_cdp_session = itself

    def stop(self) -> None: ...


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NoChromium]:
    def play(*message: dict[str, Any] | None, **options: Any) -> NoChromium:
        actor = NoChromium(list(message), **options)
        monkeypatch.setattr(html, "playwright", lambda: actor)
        monkeypatch.setattr(Browser, "_kill", lambda browser: actor.killed.set())
        return actor

    return play


def test_what_the_page_tells_becomes_upright_quads_inside_the_window(
    played: Callable[..., NoChromium],
) -> None:
    message = {
        "height": 900,
        "lines": [
            ["in", 10, 20, 110, 40, None],
            ["cut", 10, 590, 110, 610, None],
            ["last", 0, 580, 9, 600, None],
        ],
    }
    played(message)
    with Browser(size=(800, 600), limits=ANY, executable="none") as browser:
        page = browser.page(b"<p>in")
    assert isinstance(page, Page) and page.image.size == (800, 600)
    assert [line.text for line in page.lines] == ["in", "last"]
    assert page.lines[0].quad == ((10, 20), (110, 20), (110, 40), (10, 40))


def test_a_short_page_is_not_filled_up_and_the_rules_judge_it(played: Callable[..., NoChromium]) -> None:
    played(
        {"height": 300, "lines": [["few", 0, 0, 9, 9, None]]},
        {"height": 300, "lines": [["x" * 30, 0, 0, 9, 9, None]]},
    )
    with Browser(size=(800, 600), executable="none") as browser:
        few, enough = browser.page(b"few"), browser.page(b"x")
    assert isinstance(few, Skipped) and few.kind == "fewer than 20 characters"
    assert isinstance(enough, Page) and enough.image.size == (800, 300)


def test_f44_a_page_of_few_lines_is_as_tall_as_the_rule_wants(played: Callable[..., NoChromium]) -> None:
    """F-44: content 200 px high was "a side below 224 px", though the window is 1,366 px high."""
    played(*[{"height": 200, "lines": [["x" * 30, 10, 10, 300, 30, None]]}] * 2)
    with Browser(executable="none") as browser:
        page = browser.page(b"<p>x")
    assert isinstance(page, Page) and page.image.size == (1024, 224) and len(page.lines) == 1
    with Browser(size=(1024, 100), executable="none") as browser:
        page = browser.page(b"<p>x")
    assert isinstance(page, Skipped) and page.kind == "a side below 224 px"


def test_f103_lines_of_a_web_page_that_leave_no_ink_are_dropped_and_counted(
    played: Callable[..., NoChromium],
) -> None:
    chromium = played(
        {"height": 300, "lines": [["seen", 10, 10, 900, 30, None], ["white", 10, 50, 900, 70, None]]},
        unseen=("white",),
    )
    with Browser(limits=ANY, executable="none") as browser:
        page = browser.page(b"<p>x")
    assert lines(page) == ["seen"]
    assert isinstance(page, Page) and page.unseen == 1
    assert chromium.clips == [
        (0, 0, 1024, 300),
        (0, 0, 144, 80),
        (0, 48, 912, 80),
    ]  # the beginnings, the doubtful


def test_of_a_web_page_whose_lines_are_seen_the_beginnings_alone_are_photographed_again(
    played: Callable[..., NoChromium],
) -> None:
    chromium = played(
        {"height": 300, "lines": [["one", 40, 10, 900, 30, None], ["two", 48, 250, 800, 270, None]]},
        {"height": 300, "lines": []},
    )
    with Browser(limits=ANY, executable="none") as browser:
        assert lines(browser.page(b"<p>x")) == ["one", "two"]
        assert lines(browser.page(b"")) == []
    assert chromium.clips == [(0, 0, 1024, 300), (32, 0, 176, 272), (0, 0, 1024, 300)]


def test_a_page_that_hangs_costs_its_browser_and_no_other_page(played: Callable[..., NoChromium]) -> None:
    fine = {"height": 300, "lines": [["fine", 0, 0, 9, 9, None]]}
    actor = played(fine, None, fine)
    with Browser(seconds=0.2, limits=ANY, executable="none") as browser:
        found = [browser.page(b"<p>x") for _ in range(3)]
    assert [page.kind if isinstance(page, Skipped) else page.lines[0].text for page in found] == [
        "fine", "page never finished loading", "fine",
    ]  # fmt: skip
    assert actor.starts == 2


def test_a_page_that_leads_elsewhere_is_none(played: Callable[..., NoChromium]) -> None:
    played({"height": 300, "lines": []}, address="chrome-error://chromewebdata/")
    with Browser(limits=ANY, executable="none") as browser:
        page = browser.page(b"<meta http-equiv=refresh content='0;url=http://x/'>")
    assert isinstance(page, Skipped) and page.kind == "page that leads elsewhere"


def lines(page: Page | Skipped) -> list[str]:
    assert isinstance(page, Page), page
    return [line.text for line in page.lines]


@with_browser
def test_lines_are_those_of_the_browser(browser: Browser) -> None:
    page = browser.page(
        "<!doctype html><meta charset=utf-8><style>body{font:20px sans-serif;width:400px} h1{text-transform:uppercase}"
        "</style><h1>A heading</h1><p>Words <b>in bold</b>, a <a href=x>link</a> and enough more of them to fill the "
        "line and the next</p><table><tr><td>left cell</td><td>right cell</td></tr></table><p>中文也按行</p>".encode()
    )
    found = lines(page)
    assert found[0] == "A HEADING"
    assert found[1].startswith("Words in bold, a link and")
    assert " ".join(found[1:-3]).endswith("to fill the line and the next")
    assert found[-3:] == ["left cell", "right cell", "中文也按行"]
    assert isinstance(page, Page)
    check_ink(page, slack=0.3)


@with_browser
def test_what_is_not_seen_is_not_read(browser: Browser) -> None:
    page = browser.page(
        b"<!doctype html><title>title</title><script>var a = 'script'</script><style>p{color:black}</style>"
        b"<p>seen</p><p style='display:none'>gone</p><p style='visibility:hidden'>hidden</p>"
        b"<p style='opacity:0'>clear</p>"
        b"<p style='color:transparent'>ghost</p><p style='position:absolute;left:-900px'>left</p>"
        b"<div style='position:relative'><p>covered</p>"
        b"<div style='position:absolute;inset:0;background:red'></div></div>"
        b"<p style='position:absolute;top:900px'>below</p><p style='position:absolute;top:590px'>cut</p>"
    )
    assert lines(page) == ["seen"]


@with_browser
@pytest.mark.parametrize(
    "style",
    [
        "color:white", "color:#fefefe", "color:rgba(0,0,0,0.01)", "opacity:0.01", "font-size:1px",
        "color:white!important", "-webkit-text-fill-color:transparent", "clip-path:inset(100%)",
        "background:#333;color:#333",
        "background:linear-gradient(red,red);color:red", "-webkit-text-security:disc", "filter:opacity(0)",
    ],
)  # fmt: skip
def test_f103_what_leaves_no_ink_is_not_read(browser: Browser, style: str) -> None:
    """F-103: white on white was learned."""
    page = browser.page(
        f"<!doctype html><p style='color:black!important'>seen</p><p style='{style}'>never shown</p>"
        "<p style='color:#bbb'>pale, but there</p>"
        "<p style='background:linear-gradient(red,blue);background-clip:text;-webkit-text-fill-color:transparent'>"
        "painted</p><svg width=300 height=40><text y=20>drawn</text></svg>".encode()
    )
    assert lines(page) == ["seen", "pale, but there", "painted", "drawn"]


BEHIND = "<div style='position:relative'><p>never shown</p>{}</div>"
OVER = "pointer-events:none;position:absolute;left:0;top:0;width:300px;height:40px"
DARK = "linear-gradient(45deg,red,navy)"
CROSS = "<svg width='300' height='40'><path d='M0 0L300 40M0 40L300 0' stroke='red'/></svg>"


@with_browser
@pytest.mark.parametrize(
    "hidden",
    [
        "<p style='text-indent:-999px;overflow:hidden'>never shown</p>",
        "<p style='font-size:0'>never shown</p>",
        "<p style='transform:translateX(-999px)'>never shown</p>",
        "<p style='transform:rotateY(180deg);backface-visibility:hidden'>never shown</p>",
        "<p style='height:0;overflow:hidden'>never shown</p>",
        "<p style='position:absolute;clip:rect(0,0,0,0)'>never shown</p>",
        "<p style='mask:linear-gradient(transparent,transparent)'>never shown</p>",
        "<p style='content-visibility:hidden'>never shown</p>",
        "<p style='background:url(\"data:image/svg+xml,never\");color:transparent'>never shown</p>",
        "<p style='color:red;border-left:40px solid red;text-indent:-30px;background:red'>n</p>",
        BEHIND.format(f"<div style='{OVER};outline:20px solid red;outline-offset:-20px'></div>"),
        BEHIND.format(f"<div style='{OVER};box-shadow:inset 0 0 9px 9px red;background:tan'></div>"),
        "<p style='color:white;text-decoration:underline red'>never shown</p>",
        "<style>#f::first-line{color:white}</style><p id=f>never shown</p>",
        "<style>#g::before{content:'';position:absolute;width:60px;height:9px;background:red}</style>"
        "<p id=g style='color:white'>never shown</p>",
        "<style>@media all{@supports(color:red){#h{color:white;background:"
        + DARK + " 0 0/4px 4px}}}</style><p id=h style='color:transparent'>never shown</p>",
        BEHIND.format(f"<div style='{OVER};background:teal'></div>"),
        BEHIND.format(f"<div style='{OVER};background:{DARK}'></div>"),
        BEHIND.format(f"<div style='{OVER};border:20px solid red;box-sizing:border-box'></div>"),
        BEHIND.format(f"<div style='{OVER};background:white'>{CROSS}</div>"),
        BEHIND.format(f"<input style='{OVER}' value=other>"),
        f"<div style='position:relative'><p style='color:white'>never shown</p><div style='{OVER};width:50px;"
        "background:#ddd'></div></div>",
        f"<div style='position:relative'><p style='color:white'>never shown</p><div style='{OVER};border-radius:50%;"
        "width:60px;background:teal'></div></div>",
        f"<div style='position:relative'><div style='{OVER}'><template shadowrootmode=closed>"
        f"<div style='{OVER};background:white'>{CROSS}</div></template></div><p>never shown</p></div>",
    ],
)  # fmt: skip
def test_f103_hidden_where_something_else_is_painted(browser: Browser, hidden: str) -> None:
    """What is coloured where a line stands is no proof of its letters: a border, a shadow, an image laid over them."""
    page = browser.page(f"<!doctype html><p>before</p>{hidden}<p>after</p>".encode())
    assert [line for line in lines(page) if line in ("before", "n", "never shown", "after")] == [
        "before",
        "after",
    ]


@with_browser
@pytest.mark.parametrize(
    ("page", "photographs"),
    [
        ("<style>p{color:#333}</style><p>Plain <a href=x>words</a> are <u>seen</u> <mark>at once</mark></p>"
         "<table border=1><tr><td>cell</td><td style='background:#eee'>cell</td></tr></table>", 1),
        ("<p style='background:#224;color:#fff;border-radius:4px;box-shadow:0 1px 3px #000;padding:9px'>a card</p>", 1),
        ("<p>seen<p style='filter:none;color:white'>not</p>", 3),  # the beginnings, then what is in doubt
        ("<p style='filter:blur(0.1px)'>a doubt</p>", 2),
        ("<p>words</p><div style='position:absolute;inset:0'></div>", 1),  # what paints nothing covers nothing
    ],
)  # fmt: skip
def test_a_page_of_plain_words_is_photographed_once(
    browser: Browser, page: str, photographs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    photograph = Browser._photograph
    monkeypatch.setattr(Browser, "_photograph", lambda *given: taken.append(given) or photograph(*given))
    assert lines(browser.page(f"<!doctype html>{page}".encode())) and len(taken) == photographs


@with_browser
def test_words_of_one_run_are_one_line(browser: Browser) -> None:
    """Words are not asked for one by one; wide spaces and words broken over lines come out as if they were."""
    page = browser.page(
        "<!doctype html><meta charset=utf-8><style>p{font:16px sans-serif;width:160px;margin:4px}</style>"
        "<p>one  two\nthree four five six seven eight nine ten</p><p style='word-spacing:40px'>far apart</p>"
        "<p>re-entry-point-of-the-whole</p><p style='text-transform:capitalize'>each word</p>"
        "<p>中文 and 中文</p>".encode()
    )
    found = lines(page)
    assert " ".join(found).startswith("one two three four five six seven eight nine ten far apart re-entry")
    at = found.index("far")
    assert "".join(found[at + 2 : -2]) == "re-entry-point-of-the-whole" and len(found) >= at + 6
    assert found[-2:] == ["Each Word", "中文 and 中文"]
    assert isinstance(page, Page)
    check_ink(page, slack=0.3)


@with_browser
def test_f44_a_short_page_in_the_browser() -> None:
    def read() -> Page | Skipped:
        with Browser(seconds=60.0) as browser:
            return browser.page(b"<!doctype html><p>A page with few lines, all of which are kept")

    page = elsewhere(read)
    assert isinstance(page, Page) and page.image.size == (1024, 224)


@with_browser
def test_nothing_is_fetched(browser: Browser, tmp_path: Path) -> None:
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    secret = tmp_path / "secret.html"
    secret.write_text("<p>a file of this machine")
    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}"
        page = browser.page(
            f"<p>mine<img src={there}/a.png><link rel=stylesheet href={there}/b.css><iframe src={there}/c></iframe>"
            f"<iframe src=file://{secret}></iframe><script src={there}/d.js></script>".encode()
        )
        server.shutdown()
    assert lines(page) == ["mine"]
    assert asked == []


@with_browser
def test_a_page_that_never_finishes_is_counted_and_the_next_is_read() -> None:
    def read() -> list[Page | Skipped]:
        with Browser(seconds=3.0, scripts=True, limits=ANY) as browser:
            return [
                browser.page(b"<p>hello<script>while (true) {}</script>"),
                browser.page(b"<p>hello<script>setTimeout(() => {while (true) {}}, 1)</script>"),
                read_patiently(browser, b"<p>and on<script>document.body.append('!')</script>"),
            ]

    stuck, later, fine = elsewhere(read)
    assert isinstance(stuck, Skipped) and stuck.kind == "page never finished loading"
    assert isinstance(later, Skipped) or lines(later) == ["hello"]  # as the clock has it
    assert lines(fine) == ["and on", "!"]


def read_patiently(browser: Browser, page: bytes) -> Page | Skipped:
    """A good page on a machine so busy that even it may miss the time limit."""
    found = [browser.page(page)]
    while isinstance(found[-1], Skipped) and len(found) < 5:
        found.append(browser.page(page))
    return found[-1]


@with_browser
def test_bad_pages_are_told_apart(browser: Browser, tmp_path: Path) -> None:
    away = browser.page(b"<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><p>hello")
    assert isinstance(away, Skipped | Page)
    assert lines(browser.page(b"<p>and on")) == ["and on"]
    missing = browser.page(tmp_path / "no.html", "no")
    assert isinstance(missing, Skipped) and missing.kind == "unreadable file"
    assert lines(browser.page(b"")) == []
    broken = browser.page(b"\x00\xff<p>broken bytes")
    assert isinstance(broken, Skipped) and broken.kind == "characters without Unicode"


@with_browser
def test_html_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.html").write_text("<p style='height:400px'>few")
    (tmp_path / "in/b.htm").write_text(
        "<p style='height:400px'>Enough characters for the rule that counts them"
    )
    words = ["data", "synth", "html", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--seconds", "60"]
    assert elsewhere(lambda: cli.main(words)) == 0
    message = capsys.readouterr().out
    assert "- fewer than 20 characters" in message and "50.0 %" in message
    names = [member.name for member in read_tar(tmp_path / "out/pages-000000.tar")]
    assert names == ["000001-b.jpg", "000001-b.json", "000001-b.pixels.json"]


def test_a_page_is_decoded_as_it_says() -> None:
    assert "é" in _decoded('<meta charset="windows-1252">é'.encode("cp1252"))
    assert "中文" in _decoded("<meta http-equiv=x content='text/html; charset=gb2312'>中文".encode("gbk"))
    assert _decoded("中".encode("utf-16")) == "中"
    assert _decoded("\ufeff中".encode()) == "中"
    assert _decoded(b"<meta charset=nonsense>\xff") == "<meta charset=nonsense>\ufffd"
    assert "\u201cé\u201d" in _decoded('<meta charset="ISO-8859-1">“é”'.encode("cp1252"))


@pytest.mark.parametrize(
    "name",
    ["undefined", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "utf-16", "utf-32", "rot13",
     "hex", "mbcs", "base64", "zip", "x", "..", "-", "cp037", "oem", "utf_8_sig", "charmap", "a" * 400],
)  # fmt: skip
def test_f98_a_page_that_names_no_encoding_of_the_web_is_utf8(name: str) -> None:
    """F-98: charset `undefined` or `idna` ended the run with a UnicodeError."""
    page = f'<meta charset="{name}"> é \\u0041 +AGE-'
    assert _decoded(page.encode() + b"\xff") == page + "\ufffd"
