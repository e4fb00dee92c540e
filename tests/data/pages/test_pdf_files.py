"""F-96: PDF files of strangers in a process that may die; one that hangs, crashes or eats memory costs its page."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from reportlab.pdfgen import canvas

from qwenvl.data.records import Skipped
from qwenvl.data.synth.pages import pdf, pdf_files
from qwenvl.data.synth.pages.pdf_files import pdf_files as read_files
from qwenvl.data.synth.pages.rules import Limits

ANY = Limits(fewest_characters=0, smallest_side=1)


def good(pages: int = 1) -> bytes:
    buffer = BytesIO()
    paper = canvas.Canvas(buffer, pagesize=(400, 300))
    for number in range(pages):
        paper.drawString(30, 100, f"Page {number} deserves to be kept")
        paper.showPage()
    paper.save()
    return buffer.getvalue()


def written(objects: list[bytes]) -> bytes:
    """A file of these objects; the first is its catalog."""
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return data + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
        % (size, table, size, len(data))
    )


def stream(entries: bytes, data: bytes) -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (entries, len(data), data)


def of_one_page(content: bytes, resources: bytes = b"<< >>", *more: bytes, count: int = 1) -> bytes:
    box = b"/MediaBox [0 0 400 300]"
    return written(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count %d >>" % count,
            b"<< /Type /Page /Parent 2 0 R %s /Resources %s /Contents 4 0 R >>" % (box, resources),
            stream(b"", content),
            *more,
        ]
    )


def endless() -> bytes:
    """Two forms that call each other, each twice."""
    form = b"/Type /XObject /Subtype /Form /BBox [0 0 400 300] /Resources << /XObject << /X %d 0 R >> >>"
    calls = b"/X Do /X Do"
    return of_one_page(
        b"/X Do", b"<< /XObject << /X 5 0 R >> >>", stream(form % 6, calls), stream(form % 5, calls)
    )


def outcomes(paths: list[Path], **options) -> list[tuple[str, str | None]]:
    found = read_files(paths, limits=ANY, **options)
    return [(key, page.kind if isinstance(page, Skipped) else page.lines[0].text) for key, page in found]


def test_f96_a_page_without_an_end_costs_itself_and_no_file_beside_it(tmp_path: Path) -> None:
    for name, data in (("a", good()), ("b", endless()), ("c", b"no PDF"), ("d", good(2))):
        (tmp_path / f"{name}.pdf").write_bytes(data)
    assert outcomes(sorted(tmp_path.iterdir()), seconds=3.0) == [
        ("000000-a-00000", "Page 0 deserves to be kept"),
        ("000001-b-00000", "PDF that takes too long"),
        ("000002-c", "broken PDF"),
        ("000003-d-00000", "Page 0 deserves to be kept"),
        ("000003-d-00001", "Page 1 deserves to be kept"),
    ]


def test_f96_a_file_that_kills_its_reader_goes_on_behind_the_page_that_did_it(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(good(4))
    reader = pdf_files.Reader(60.0, 2048)
    found = []
    try:
        for key, page in reader.pages(tmp_path / "a.pdf", "a", {"limits": ANY}):
            found.append((key, page.kind if isinstance(page, Skipped) else page.lines[0].text))
            if len(found) == 1:
                reader._process.kill()
                reader._process.join()
    finally:
        reader.end()
    assert found == [
        ("a-00000", "Page 0 deserves to be kept"),
        ("a-00001", "PDF that ends its reader"),
        ("a-00002", "Page 2 deserves to be kept"),
        ("a-00003", "Page 3 deserves to be kept"),
    ]


class Dying:
    """Plays the line to a reader that dies at every page."""

    def poll(self, seconds: float) -> bool:
        return True

    def send(self, message: object) -> None:
        self.message = iter([b'{"pages": 100}'])

    def recv_bytes(self) -> bytes:
        try:
            return next(self.message)
        except StopIteration:
            raise EOFError from None

    def close(self) -> None: ...


def test_f96_a_file_that_kills_every_reader_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        exitcode = -6

        def kill(self) -> None: ...

        def join(self, seconds: float | None = None) -> None: ...

    def start(reader: pdf_files.Reader) -> None:
        reader._line, reader._process = Dying(), Process()  # type: ignore[assignment]

    monkeypatch.setattr(pdf_files.Reader, "_start", start)
    found = [page for _, page in pdf_files.Reader(1.0, 100).pages(Path("a.pdf"), "a", {})]
    assert [page.kind for page in found if isinstance(page, Skipped)] == [
        *["PDF that ends its reader"] * 3, "rest of a PDF that ends its reader",
    ]  # fmt: skip
    assert [page.detail for page in found if isinstance(page, Skipped)][-1].startswith("97 pages")
    assert all(isinstance(page, Skipped) for page in found)


def test_f96_a_file_that_says_it_has_two_thousand_million_pages(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(of_one_page(b"", count=2_000_000_000))
    assert len(list(pdf.pdf_pages(tmp_path / "a.pdf", limits=ANY))) <= pdf.HOPELESS + 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here: limits on memory are not checked")
def test_f96_memory_has_a_limit(tmp_path: Path) -> None:
    """A page of a million nested states takes 190 MB; the file beside it does not suffer."""
    (tmp_path / "a.pdf").write_bytes(of_one_page(b"q 0 0 m 9 9 l S " * 1_000_000))
    (tmp_path / "b.pdf").write_bytes(good())
    (_, first), (_, second) = outcomes(sorted(tmp_path.iterdir()), memory=64)
    assert first in ("PDF that ends its reader", "broken PDF page", "broken PDF")
    assert second == "Page 0 deserves to be kept"


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": float("nan")}, {"memory": 1}])
def test_limits_that_no_file_could_keep_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give more than 0"):
        next(read_files([Path("a.pdf")], **options))  # type: ignore[arg-type]


def test_a_reader_ends_with_its_work(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(good(3))
    pages: Any = read_files([tmp_path / "a.pdf"], limits=ANY)
    next(pages)
    inner = pages
    while "reader" not in inner.gi_frame.f_locals:  # the hook that checks annotations stands around it
        inner = inner.gi_yieldfrom
    reader = inner.gi_frame.f_locals["reader"]
    pages.close()
    with pytest.raises(ProcessLookupError):
        os.kill(reader._process.pid, 0)
