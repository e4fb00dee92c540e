"""Pages of the web with their lines (paper A.4, HTML), by Playwright and a Chromium of the system (paper: Puppeteer).

A page is what its bytes say and nothing else: the browser has no network, three times over. Lines come from
`Range.getClientRects`, so they are where the browser put the letters; a line that leaves no ink is none (`ink.py`).
One photograph shows it where a word of the line stands on a plain ground (`plain.js`); what is left in doubt is
photographed again without its letters.
Chromium is not part of the package: `apt-get install chromium`, or name another with `executable`.
"""

import base64
import codecs
import contextlib
import math
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL.Image import Image

from qwenvl.data.records import Skipped
from qwenvl.data.synth.pages.ink import Box, around, has_letters, seen_lines
from qwenvl.data.synth.pages.page import Corners, Line, Page, file_key
from qwenvl.data.synth.pages.rules import Limits, first_reason, html_rules
from qwenvl.images import open_image

BEGINNING = 128
"""Pixels of the beginnings of lines that are photographed first without the text."""

BLANK = "about:blank"
"""The address of every page: it has no host, so relative links lead nowhere."""

LINES, PLAIN = ((Path(__file__).parent / name).read_text() for name in ("lines.js", "plain.js"))
"""The programs that find the lines, and where something else than letters is painted; run inside the page."""

WITHOUT_TEXT = """() => {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`*, *::before, *::after, *::first-line, *::first-letter {
    -webkit-text-fill-color: transparent !important; -webkit-text-stroke-color: transparent !important;
    text-shadow: none !important; background-clip: border-box !important; transition: none !important }
    svg text, svg text * { fill: transparent !important; stroke: transparent !important }`);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}"""
"""The program that takes the letters off the page and leaves everything where it is."""

WITH_TEXT = "() => { document.adoptedStyleSheets = []; return location.href; }"
"""The program that gives them back, and says where the window is: it keeps such styles when its content changes."""

ENCODINGS = frozenset(
    {
        "utf-8", "cp866", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "gb18030", "big5", "euc_jp", "iso2022_jp",
        "shift_jis", "euc_kr", *(f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
        "cp874", *(f"cp{page}" for page in range(1250, 1259)),
    }
)  # fmt: skip
"""What browsers know (the Encoding Standard), by Python's names; Python itself knows stranger ones."""

READ_AS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "cp949": "euc_kr", "cp932": "shift_jis", "big5hkscs": "big5",
}  # fmt: skip
"""As browsers do: the larger encoding where pages name the smaller one."""

NEVER_FINISHED = "page never finished loading"


def playwright() -> Any:
    """The module `playwright.sync_api`; raises ValueError where it is not installed."""
    try:
        return import_module("playwright.sync_api")
    except ImportError:
        raise ValueError(
            "HTML pages need the package playwright, which is not installed; pip install 'qwenvl[ocr]'."
        ) from None


def chromium() -> str:
    """The Chromium of this machine; raises ValueError where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    raise ValueError(
        "HTML pages need Chromium, which was not found on PATH; `apt-get install chromium`, or name the program "
        "of another browser of its family."
    )


class Browser:
    """One Chromium for many pages; use it as a context manager. After a page that hangs it is started anew."""

    def __init__(
        self,
        *,
        size: tuple[int, int] = (1024, 1366),
        seconds: float = 5.0,
        scripts: bool = False,
        limits: Limits | None = None,
        executable: str | None = None,
    ) -> None:
        """`size` is the window in pixels: what lies below it is cut off; a page has `seconds` to load and be read.

        `scripts` runs the programs of the page, as Puppeteer would: only for pages that are trusted, since Chromium has
        no sandbox of its own where this process is root.
        """
        self._size, self._seconds, self._scripts = size, seconds, scripts
        self._limits = limits or Limits()
        self._rules = html_rules(self._limits)
        self._executable = executable or chromium()
        self._body = b""
        self._running: Any = None
        self._library = playwright()

    def __enter__(self) -> "Browser":
        self._playwright = self._library.sync_playwright().start()
        try:
            self._start()
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._playwright.stop()

    def _start(self) -> None:
        sandbox = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]
        nowhere = "--host-resolver-rules=MAP * ~NOTFOUND"
        try:
            self._running = self._playwright.chromium.launch(
                executable_path=self._executable,
                args=["--disable-gpu", "--hide-scrollbars", nowhere, *sandbox],
            )
        except self._library.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"Chromium at {self._executable} does not start ({reason}); check it by hand."
            ) from None
        session = self._running.new_browser_cdp_session()
        processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
        self._pid = next(int(process["id"]) for process in processes if process["type"] == "browser")
        self._open()

    def _open(self) -> None:
        context = self._running.new_context(
            viewport={"width": self._size[0], "height": self._size[1]},
            java_script_enabled=self._scripts,
            accept_downloads=False,
            service_workers="block",
            offline=True,
        )
        self._page = context.new_page()
        self._page.on("dialog", lambda dialog: dialog.dismiss())
        self._session = context.new_cdp_session(self._page)
        self._session.send("Network.enable")
        self._session.send("Network.setBlockedURLs", {"urls": ["*"]})
        self._frame = self._session.send("Page.getFrameTree")["frameTree"]["frame"]["id"]

    def _stop(self) -> None:
        with contextlib.suppress(self._library.Error):
            self._running.close()

    def page(self, source: Path | bytes, key: str = "page") -> Page | Skipped:
        """The page as it stands in the window, with its lines; `Skipped` with the reason where it cannot be had."""
        try:
            text = _decoded(source if isinstance(source, bytes) else source.read_bytes())
        except OSError as error:
            return Skipped(key=key, kind="unreadable file", detail=str(error), source="html")
        watch = threading.Timer(
            self._seconds, self._kill
        )  # what runs inside the page has no time limit of its own
        watch.start()
        try:
            page = self._shown(text)
        except self._library.Error as error:
            self._start_anew()
            kind = "broken HTML page" if watch.is_alive() else NEVER_FINISHED
            return Skipped(key=key, kind=kind, detail=str(error).strip().splitlines()[0], source="html")
        finally:
            watch.cancel()
        if self._scripts or page is None:
            self._start_anew()  # what a program left behind ends with its page
        if page is None:
            return Skipped(key=key, kind="page that leads elsewhere", source="html")
        reason = first_reason(page, self._rules)
        return Skipped(key=key, kind=reason, source="html") if reason else page

    def _shown(self, text: str) -> Page | None:
        """The page in the window; None where it sent the browser elsewhere."""
        self._session.send("Page.setDocumentContent", {"frameId": self._frame, "html": text})
        source = text.lower()
        trusted = not self._scripts and "shadowroot" not in source  # else it may hide what it paints
        found = self._evaluate(LINES, PLAIN if trusted else "null")
        least = min(self._limits.smallest_side, self._size[1])  # the window goes on below a page of few lines
        height = max(least, 1, min(self._size[1], found["height"]))
        file = self._photograph((0, 0, self._size[0], height))
        image = open_image(file)
        lines, doubtful = [], []
        for text, *box, word in found["lines"]:
            if box[3] <= height:
                lines.append(Line(text, _upright(*map(float, box))))
                if not (word and has_letters(image, word)):
                    doubtful.append(lines[-1])
        unseen = self._unseen(doubtful, image) if doubtful else []
        # Without a program only a refresh leads elsewhere.
        may_leave = self._scripts or "http-equiv" in source
        if (doubtful or may_leave) and self._evaluate(WITH_TEXT) != BLANK:
            return None
        seen = tuple(line for line in lines if line not in unseen)
        return Page(image=image, lines=seen, source="html", file=file, unseen=len(unseen))

    def _unseen(self, lines: list[Line], image: Image) -> list[Line]:
        """The lines without ink, told by photographs of the page without its text, of no more of it than is needed."""
        self._evaluate(WITHOUT_TEXT)
        blank, rest = image.copy(), lines
        for longest in (BEGINNING, math.inf):
            if rest:
                box = around(rest, image.size, longest)
                blank.paste(open_image(self._photograph(box)), box[:2])
                seen = seen_lines(rest, image, blank)
                rest = [line for line in rest if line not in seen]
        return rest

    def _evaluate(self, program: str, argument: str = "") -> Any:
        """What a program returns that is run inside the page, by the protocol itself: half the time of the driver's."""
        wish = {"expression": f"({program})({argument})", "returnByValue": True}
        message = self._session.send("Runtime.evaluate", wish)
        if "exceptionDetails" in message:
            raise self._library.Error(
                f"A program inside the page failed: {message['exceptionDetails']['text']}"
            )
        return message["result"].get("value")

    def _photograph(self, box: Box) -> bytes:
        """A part of the window, as a JPEG file."""
        left, top, right, bottom = box
        clip = {"x": left, "y": top, "width": right - left, "height": bottom - top, "scale": 1}
        wish = {"format": "jpeg", "quality": 90, "optimizeForSpeed": True, "clip": clip}
        return base64.b64decode(self._session.send("Page.captureScreenshot", wish)["data"])

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)

    def _start_anew(self) -> None:
        try:
            self._page.context.close()
            self._open()
        except self._library.Error:  # the browser is gone with its page
            self._stop()
            self._start()


def _decoded(page: bytes) -> str:
    """The text of a page by its byte order mark, else by what it says of itself, else UTF-8; a wrong byte is U+FFFD."""
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if page.startswith(mark):
            return page.decode(name, "replace")
    said = re.search(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", page[:1024], re.IGNORECASE)
    return page.decode(_encoding(said[1].decode("ascii", "replace") if said else "utf-8"), "replace")


def _encoding(name: str) -> str:
    """The encoding that a browser takes a name for; UTF-8 for a name it does not know."""
    try:
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        return "utf-8"
    known = READ_AS.get(known, known)
    return known if known in ENCODINGS else "utf-8"


def _upright(left: float, top: float, right: float, bottom: float) -> Corners:
    return (left, top), (right, top), (right, bottom), (left, bottom)


def html_pages(paths: list[Path], **options: Any) -> Iterator[tuple[str, Page | Skipped]]:
    """Every file as a page with its key, in order; options as for `Browser`."""
    with Browser(**options) as browser:
        for number, path in enumerate(paths):
            key = file_key(number, path)
            yield key, browser.page(path, key)
