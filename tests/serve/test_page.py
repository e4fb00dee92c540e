"""The page at /, in Chromium, at the level of pixels: the server is the real one, the engine says what the test wants.

With QWENVL_SCREENSHOTS=docs the images of the guide are taken here.
"""

import importlib.util
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow
from PIL import ImageDraw
from serving import Running, ScriptedEngine

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None or BROWSER is None,
        reason="no Chromium on this machine (apt-get install chromium): the server's page is not looked at",
    ),
]

ANSWER = (
    "There is <ref>a red square</ref><box>(100,200),(400,600)</box> and "
    "<ref>a blue one</ref><box>(600,200),(900,600)</box>. <img src=x onerror=alert(1)>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """400 x 200 pixels of white with a red and a blue square."""
    image = pillow.new("RGB", (400, 200), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 40, 159, 119), fill="red")
    draw.rectangle((240, 40, 359, 119), fill="blue")
    path = tmp_path / "squares.png"
    image.save(path)
    return path


class Visit:
    """The page as one visitor has it, with all that went wrong and all that it asked for."""

    def __init__(self, browser: Any, server: Running, **context: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "locale": "en", **context}
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"http://{server.host}:{server.port}/")
        self.page.wait_for_selector("#model:not(:empty)")

    def shows(self, image: Path) -> dict[str, float]:
        """Add an image; where it stands on the screen."""
        self.page.set_input_files("#files", str(image))
        self.page.wait_for_selector("#frame:not([hidden])")
        self.page.locator("#shown").evaluate("image => image.decode()")
        return self.page.locator("#shown").bounding_box()

    def asks(self, question: str) -> str:
        """Ask and wait for the end; the text of the answer as it is shown."""
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        self.page.wait_for_selector(".turn.assistant:last-child .foot")
        return self.page.locator(".turn.assistant").last.inner_text()

    def pixels(self, name: str = "") -> np.ndarray:
        """The screen (height, width, 3); kept for the guide where that is asked for."""
        shot = self.page.screenshot()
        if name and (folder := os.environ.get("QWENVL_SCREENSHOTS")):
            pillow.open(io.BytesIO(shot)).convert("RGB").save(Path(folder) / f"{name}.webp", quality=85)
        return np.asarray(pillow.open(io.BytesIO(shot)).convert("RGB"))


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def new(**context: Any) -> Visit:
        visits.append(Visit(browser, server, **context))
        return visits[-1]

    yield new
    for each in visits:
        assert each.complaints == [], "the page runs without errors under its own policy"
        assert all(
            url.startswith((server.url.removesuffix("v1"), "data:", "blob:")) for url in each.requests
        ), "nothing from elsewhere"
        each.context.close()


@pytest.mark.parametrize("width", [320, 375])
def test_labels_stay_on_a_phones_screen(
    visit: Callable[..., Visit], says: Callable[[str], None], squares: Path, width: int
) -> None:
    says("<ref>the small square at the right</ref><box>(850,200),(990,600)</box>")
    own = visit(viewport={"width": width, "height": 700})
    own.shows(squares)
    own.asks("What is there?")
    label = own.page.locator(".label").bounding_box()
    image = own.page.locator("#shown").bounding_box()
    assert image["x"] <= label["x"] and label["x"] + label["width"] <= image["x"] + image["width"] + 1
    assert own.page.evaluate("document.documentElement.scrollWidth") <= width


def test_boxes_are_drawn_where_they_belong(
    visit: Callable[..., Visit], says: Callable[[str], None], squares: Path
) -> None:
    says(ANSWER)
    own = visit()
    place = own.shows(squares)
    assert place["width"] / place["height"] == pytest.approx(2, rel=0.01)
    text = own.asks("What is there?")
    assert text.startswith("There is a red square and a blue one. <img src=x onerror=alert(1)>"), (
        "text stays text"
    )
    screen = own.pixels().astype(int)
    for left, top, right, bottom, corner in ((100, 200, 400, 600, "red"), (600, 200, 900, 600, "blue")):
        middle = round(place["y"] + place["height"] * (top + bottom) / 2000)
        for edge in (left, right):
            x = round(place["x"] + place["width"] * edge / 1000)
            around = screen[middle, x - 4 : x + 5]
            colour = own.page.locator(".phrase", has_text=corner).evaluate(
                "node => getComputedStyle(node).borderBottomColor"
            )
            wanted = np.array([int(number) for number in colour[4:-1].split(",")])
            assert (np.abs(around - wanted).max(axis=1) < 40).any(), (
                f"{corner}: its line is missing at {edge}"
            )


def test_a_phrase_lights_its_box_and_a_box_its_phrase(
    visit: Callable[..., Visit], says: Callable[[str], None], squares: Path
) -> None:
    says(ANSWER)
    own = visit()
    place = own.shows(squares)
    own.asks("What is there?")
    own.page.mouse.move(1, 1)
    at = round(place["y"] + place["height"] * 0.8), round(place["x"] + place["width"] * 0.05)
    inside = round(place["y"] + place["height"] * 0.35), round(place["x"] + place["width"] * 0.25)
    before = own.pixels()
    own.page.locator(".phrase").first.hover()
    lit = own.pixels("page")
    assert (before[at] == lit[at]).all() and (before[inside] != lit[inside]).any(), (
        "the box is filled, the rest is not"
    )
    own.page.mouse.move(inside[1], inside[0])
    classes = own.page.locator(".phrase").evaluate_all("nodes => nodes.map(node => node.className)")
    assert classes == ["phrase lit", "phrase"]


def test_a_region_is_dragged_and_asked_about(
    visit: Callable[..., Visit], says: Callable[[str], None], asked: Callable[[], str], squares: Path
) -> None:
    says("It is red.")
    own = visit()
    place = own.shows(squares)
    x, y = place["x"], place["y"]
    own.page.mouse.move(x + place["width"] * 0.1, y + place["height"] * 0.2)
    own.page.mouse.down()
    own.page.mouse.move(x + place["width"] * 0.4, y + place["height"] * 0.6, steps=3)
    own.page.mouse.up()
    shown = own.page.locator("#region").inner_text()
    assert [
        abs(int(a) - b) <= 1
        for a, b in zip(shown.split(" ", 1)[1].rstrip(" ×\n").split(", "), (40, 40, 160, 120), strict=True)
    ]
    own.asks("What is this?")
    prompt = asked()
    assert "What is this?<box>(" in prompt and prompt.count("<box>") == 1
    corners = [
        int(n)
        for n in prompt.split("<box>")[1].split("</box>")[0].replace("(", "").replace(")", "").split(",")
    ]
    assert np.abs(np.array(corners) - (100, 200, 400, 600)).max() <= 4
    assert own.page.locator("#region").count() == 0


def test_stop_keeps_what_was_written(
    visit: Callable[..., Visit], says: Callable[[str], None], engine: ScriptedEngine, squares: Path
) -> None:
    says("word " * 200)
    engine.seconds = 0.05
    own = visit()
    own.shows(squares)
    own.page.fill("#question", "Tell me")
    own.page.press("#question", "Enter")
    own.page.locator(".turn.assistant", has_text="word word").wait_for()
    own.page.click("#stop")
    own.page.wait_for_selector(".foot")
    text = own.page.locator(".turn.assistant").inner_text()
    assert "stopped" in text and text.count("word") < 200
    assert own.page.locator("#send").is_visible() and not own.page.locator("#stop").is_visible()


def test_several_images_and_turns_are_sent_as_a_dialogue(
    visit: Callable[..., Visit], says: Callable[[str], None], asked: Callable[[], str], squares: Path
) -> None:
    says(ANSWER)
    own = visit()
    own.shows(squares)
    own.asks("One?")
    own.shows(squares)
    own.asks("Two?")
    prompt = asked()
    assert prompt.count("<img>") == 2 and prompt.index("One?") < prompt.index("a red square") < prompt.index(
        "Two?"
    )
    assert own.page.locator("#strip button").count() == 2
    own.page.locator("#strip button").first.click()
    assert own.page.locator("#frame polygon.shape").count() == 2, "the boxes of the answer about that image"
    own.page.click("#fresh")
    assert own.page.locator(".turn").count() == 0 and own.page.locator("#frame").is_hidden()


def test_boxes_leave_as_json_as_a_call_and_as_an_image(
    visit: Callable[..., Visit], says: Callable[[str], None], squares: Path, tmp_path: Path, server: Running
) -> None:
    says(ANSWER)
    own = visit(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True)
    own.shows(squares)
    own.asks("What?")
    own.page.get_by_text("Copy JSON").click()
    copied = json.loads(own.page.evaluate("navigator.clipboard.readText()"))
    assert [(box["label"], box["pixels"]) for box in copied["boxes"]] == [
        ("a red square", [40, 40, 160, 120]), ("a blue one", [240, 40, 360, 120]),
    ]  # fmt: skip
    own.page.get_by_text("Copy cURL").click()
    call = own.page.evaluate("navigator.clipboard.readText()")
    assert call.startswith(f"curl '{server.url}") and '"image_url"' in call and "'What?'" not in call
    with own.page.expect_download() as download:
        own.page.click("#download")
    download.value.save_as(tmp_path / "boxes.png")
    drawn = pillow.open(tmp_path / "boxes.png").convert("RGB")
    assert drawn.size == (400, 200) and download.value.suggested_filename == "squares.boxes.png"
    changed = (
        np.abs(np.asarray(drawn).astype(int) - np.asarray(pillow.open(squares)).astype(int)).max(axis=2) > 30
    )
    assert changed[80, 36:45].any() and not changed[150:, :].any()


def test_an_error_is_said_and_can_be_tried_again(
    visit: Callable[..., Visit], says: Callable[[str], None], squares: Path
) -> None:
    says("Fine.")
    own = visit()
    own.shows(squares)
    own.page.click("summary")
    own.page.fill("#tokens", "1")
    own.page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    assert "cannot be reached" in own.asks("What?")
    own.complaints.clear()  # the browser names the request that was refused
    own.page.get_by_text("Try again").click()
    own.page.locator(".turn.assistant", has_text="cut").wait_for()
    assert own.page.locator(".turn").count() == 2


def test_on_a_phone_in_the_dark_in_chinese(
    visit: Callable[..., Visit], says: Callable[[str], None], squares: Path
) -> None:
    says("这里有<ref>红色方块</ref><box>(100,200),(400,600)</box>。")
    own = visit(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        color_scheme="dark",
        locale="zh-CN",
    )
    place = own.shows(squares)
    assert own.asks("这是什么？").startswith("这里有红色方块。")
    screen = own.pixels()
    assert screen[2, 2].max() < 60, "dark"
    assert place["x"] >= 0 and place["x"] + place["width"] <= 390, "the image fits"
    assert own.page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing to scroll sideways to"
    assert own.page.locator("#send").inner_text() == "发送"
    box = own.page.locator("#question").bounding_box()
    assert box["y"] + box["height"] <= 844, "the question can be typed"
    own.page.click("#language")
    assert own.page.locator("#send").inner_text() == "Send"
