"""PDF files of strangers, read in a process that may die: one that hangs, crashes or eats memory costs a page.

    this process  --path, first page-->  reader: PDFium, with limits on memory and no core dumps
                  <--JSON, pixels-----   a page, a page dropped, or the end of the file

A reader that dies, or is silent for too long, is replaced, and the file goes on behind the page that did it. Nothing
that a reader sends is more than numbers and text.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from qwenvl.data.records import Skipped
from qwenvl.data.synth.pages.page import Line, Page, file_key
from qwenvl.data.synth.pages.pdf import page_key, pdf_pages, pypdfium2
from qwenvl.processes import limit_memory

DEATHS = 3
"""Readers that a file may cost before the rest of it is given up."""

FILES = 100
"""Files after which a reader is replaced: what it has leaked goes with it."""

START = 120.0
"""Seconds in which a reader must be ready, on a machine however busy."""


def pdf_files(
    paths: Iterable[Path], *, seconds: float = 60.0, memory: int = 2048, **options: Any
) -> Iterator[tuple[str, Page | Skipped]]:
    """The pages of every file, in order; `options` are those of `pdf_pages`.

    A page has `seconds` and a file `memory` megabytes; what needs more is a `Skipped`, as is what ends its reader.
    """
    if not seconds > 0 or memory < 64:
        raise ValueError(
            f"{seconds} seconds for a page and {memory} MB for a file; give more than 0 and at least 64."
        )
    pypdfium2()  # a sentence, where it is not installed
    reader: Reader | None = None
    try:
        for number, path in enumerate(paths):
            if reader is None or number % FILES == 0:
                if reader is not None:
                    reader.end()
                reader = Reader(seconds, memory)
            yield from reader.pages(path, file_key(number, path), options)
    finally:
        if reader is not None:
            reader.end()


class Reader:
    """One process that reads PDF files, and its successors."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._seconds, self._memory = seconds, memory
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._line, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, self._memory), daemon=True)
        self._process.start()
        theirs.close()
        try:
            ready = self._line.poll(START) and self._line.recv_bytes()
        except (EOFError, OSError):
            ready = b""
        if not ready:
            self.end()
            raise ValueError(f"no reader of PDF files starts with {self._memory} MB; give more memory.")

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._line.close()

    def pages(self, path: Path, name: str, options: dict[str, Any]) -> Iterator[tuple[str, Page | Skipped]]:
        """Every page of a file; pages that end the reader are `Skipped`."""
        following, last = 0, 0
        for _ in range(DEATHS):
            self._line.send((str(path), name, following, options))
            try:
                while (message := self._next()) is not None:
                    if "pages" in message:
                        last = message["pages"]
                        continue
                    page = self._page(message)
                    following += 1
                    yield message["key"], page
                return
            except (EOFError, OSError) as error:  # TimeoutError is one
                key = page_key(name, following) if last else name
                yield key, self._death(key, error)
                self.end()
                self._start()
                following += 1
            if following >= last:
                return
        rest = f"{last - following} pages behind {DEATHS} that ended their reader"
        yield name, Skipped(key=name, kind="rest of a PDF that ends its reader", detail=rest, source="pdf")

    def _next(self) -> dict[str, Any] | None:
        """What the reader says next, None at the end of a file; raises EOFError, or OSError where it takes too long."""
        if not self._line.poll(self._seconds):
            raise TimeoutError(f"more than {self._seconds:g} seconds")
        message: dict[str, Any] | None = json.loads(self._line.recv_bytes())
        return message

    def _page(self, message: dict[str, Any]) -> Page | Skipped:
        if "kind" in message:
            return Skipped(key=message["key"], kind=message["kind"], detail=message["detail"], source="pdf")
        image = Image.frombytes("RGB", tuple(message["size"]), self._line.recv_bytes())
        lines = tuple(Line(text, tuple(map(tuple, quad))) for text, quad in message["lines"])  # type: ignore[arg-type]
        return Page(image=image, lines=lines, source="pdf", unseen=message["unseen"])

    def _death(self, key: str, error: Exception) -> Skipped:
        if isinstance(error, TimeoutError):
            return Skipped(key=key, kind="PDF that takes too long", detail=str(error), source="pdf")
        self._process.join(5)
        status = self._process.exitcode
        how = signal.strsignal(-status) if status is not None and status < 0 else f"status {status}"
        return Skipped(key=key, kind="PDF that ends its reader", detail=str(how), source="pdf")


# === In the reader ===


def _serve(line: Connection, memory: int) -> None:
    """Read files until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what PDFium says when it aborts
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pypdfium2()
    limit_memory(memory)
    with contextlib.suppress(EOFError, OSError):
        line.send_bytes(b"ready")
        while True:
            path, name, first, options = line.recv()
            pages = pdf_pages(
                Path(path), name=name, first=first, opened=lambda n: _say(line, {"pages": n}), **options
            )
            for key, page in pages:
                _tell(line, key, page)
            line.send_bytes(b"null")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _say(line: Connection, message: dict[str, Any]) -> None:
    line.send_bytes(json.dumps(message).encode())


def _tell(line: Connection, key: str, page: Page | Skipped) -> None:
    if isinstance(page, Skipped):
        _say(line, {"key": key, "kind": page.kind, "detail": page.detail})
        return
    lines = [[each.text, each.quad] for each in page.lines]
    _say(line, {"key": key, "size": page.image.size, "lines": lines, "unseen": page.unseen})
    line.send_bytes(page.image.tobytes())
