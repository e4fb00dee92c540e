"""How many OCR pages one core makes: `python benchmarks/pages.py [--pages 40]` (PDF needs reportlab, HTML Chromium).

Pages count with their JPEG. "per core" is per second of CPU time, of the browser and its driver too, so that other
work on the machine does not count; "by the clock" is what a user waits here and now.
"""

import argparse
import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from qwenvl.data.synth.pages.html import Browser
from qwenvl.data.synth.pages.look import Look, photograph
from qwenvl.data.synth.pages.page import Page, PageMaker
from qwenvl.data.synth.pages.pdf import pdf_pages
from qwenvl.data.synth.pages.text import TextSource


def cpu_of_descendants() -> float:
    """CPU seconds of the living processes that this one started, their children included (Linux; else 0)."""
    tick = os.sysconf("SC_CLK_TCK")
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / tick
    ours, total = {os.getpid()}, 0.0
    while found := {pid for pid, parent in parents.items() if parent in ours and pid not in ours}:
        ours |= found
        total += sum(seconds[pid] for pid in found)
    return total


def measure(name: str, make: Callable[[], list[Page]]) -> None:
    """Print the rate of a function that makes pages."""
    clock, cpu, others = time.perf_counter(), time.process_time(), cpu_of_descendants()
    pages = make()
    cpu = time.process_time() - cpu + cpu_of_descendants() - others
    clock = time.perf_counter() - clock
    lines = np.mean([len(page.lines) for page in pages])
    sides = np.mean([page.image.size for page in pages], axis=0)
    print(
        f"{len(pages) / cpu:7.1f} {name} per second per core ({len(pages) / clock:.1f} by the clock; "
        f"{lines:.0f} lines, {sides[0]:.0f} x {sides[1]:.0f} px on average)",
        flush=True,
    )


def drawn(look: Look, number: int) -> Callable[[], list[Page]]:
    maker = PageMaker(look)
    for index in range(15):  # fonts are opened, glyphs looked up
        maker.page(1, index).jpeg()

    def make() -> list[Page]:
        pages = [maker.page(0, index) for index in range(number)]
        assert all(page.jpeg() for page in pages)
        return pages

    return make


def pdf_file(number: int) -> bytes:
    """Dense A4 pages: 48 lines of 11 points."""
    from reportlab.pdfgen import canvas

    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    paper = canvas.Canvas(buffer)
    for _ in range(number):
        text = paper.beginText(50, 790)
        text.setFont("Times-Roman", 11)
        for _ in range(48):
            text.textLine(TextSource().passage(rng, 80, "en"))
        paper.drawText(text)
        paper.showPage()
    paper.save()
    return buffer.getvalue()


def html_file(number: int) -> bytes:
    """Headings, paragraphs of English and Chinese, a table: about 30 lines."""
    rng, texts = np.random.default_rng(number), TextSource()

    def say(length: int, language: str) -> str:
        return texts.passage(rng, length, language)

    blocks = [
        f"<h2>{say(25, 'en')}</h2><p>{say(420, 'en')} <b>{say(15, 'en')}</b></p><p>{say(140, 'zh')}</p>"
        for _ in range(3)
    ]
    rows = "".join(f"<tr><td>{say(10, 'en')}</td><td>{say(6, 'zh')}</td></tr>" for _ in range(3))
    style = "body{font:16px sans-serif;width:880px;margin:24px auto}td{border:1px solid #999;padding:4px}"
    return f"<!doctype html><meta charset=utf-8><style>{style}</style>{''.join(blocks)}<table>{rows}</table>".encode()


def read_html(number: int) -> None:
    files = [html_file(k) for k in range(number + 3)]
    with Browser(seconds=30.0) as browser:
        for file in files[:3]:
            browser.page(file)

        def make() -> list[Page]:
            return [page for file in files[3:] if isinstance(page := browser.page(file), Page)]

        measure("HTML pages", make)


def gallery(path: Path, width: int = 330, height: int = 440, across: int = 5) -> None:
    """Ten pages side by side, five in SynthDoG's look and five photographs; every second with its quads drawn."""
    canvas = Image.new("RGB", (across * width, 2 * height), "white")
    shape: dict[str, Any] = {"longest": 1024, "aspect": (1.3, 1.4), "landscape": 0.0}
    for row, look in enumerate((replace(Look(), **shape), replace(photograph(), **shape))):
        maker = PageMaker(look)
        for column in range(across):
            page = maker.page(3 + row, column)
            image = page.image.copy()
            if column % 2:
                for line in page.lines:
                    ImageDraw.Draw(image).polygon(line.quad, outline="red", width=2)
            image.thumbnail((width - 6, height - 6))
            canvas.paste(image, (column * width + 3, row * height + 3))
    canvas.save(path, quality=74)


def main() -> None:
    """Prints one line per kind of page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=40, help="pages per measurement")
    parser.add_argument("--gallery", type=Path, help="only draw ten pages into this file (docs/pages.jpg)")
    options = parser.parse_args()
    if options.gallery:
        gallery(options.gallery)
        return
    number = options.pages
    measure("synthetic pages, 1024 px", drawn(Look(longest=1024), number))
    measure("synthetic pages, 1024 x 1024", drawn(Look(longest=1024, aspect=(1, 1)), number))
    measure("synthetic pages, SynthDoG's own size", drawn(Look(), number))
    measure(
        "synthetic pages, photographs, 1024 px",
        drawn(replace(photograph(), longest=1024), number),
    )
    file = pdf_file(number)

    def read_pdf() -> list[Page]:
        pages = [page for _, page in pdf_pages(file) if isinstance(page, Page)]
        assert all(page.jpeg() for page in pages)
        return pages

    measure("PDF pages", read_pdf)
    try:
        read_html(number)
    except ValueError as error:
        print(f"   none HTML pages: {error}")


if __name__ == "__main__":
    main()
