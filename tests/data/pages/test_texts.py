"""Texts, fonts and backgrounds of a folder: what is of use is used, the rest is named; pages fit their rows."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl import cli
from qwenvl.data.records import OcrPage, Skipped, from_json
from qwenvl.data.synth.pages.fonts import Face, Fonts
from qwenvl.data.synth.pages.length import Lengths, Ruler
from qwenvl.data.synth.pages.look import Look, photograph
from qwenvl.data.synth.pages.page import PageMaker, numbered_pages
from qwenvl.data.synth.pages.scenery import Backgrounds
from qwenvl.data.synth.pages.text import NoText, TextSource
from qwenvl.data.tasks import example_of
from qwenvl.tokenizer import Tokenizer

BYTES = Tokenizer({bytes([value]): value for value in range(256)})
SMALL = Look(longest=300)
BUILT_IN = Fonts([])


def drawn(folder: Path, count: int = 2) -> list[OcrPage | Skipped]:
    maker = PageMaker(SMALL, fonts=BUILT_IN, texts=TextSource(folder))
    pages = [page for _, page in numbered_pages(maker, 0, range(count))]
    return [page if isinstance(page, Skipped) else page.record("page") for page in pages]


def words_of(pages: list[OcrPage | Skipped]) -> set[str]:
    assert all(isinstance(page, OcrPage) for page in pages), pages
    return {
        word
        for page in pages
        if isinstance(page, OcrPage)
        for line in page.lines
        for word in str(line.label).split()
    }


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("white space", b"\n\n \n" * 50, "white space"),
        ("zero width", "\u200b\u200b ".encode() * 200, "white space"),
        ("Devanagari", "हिन्दी में लिखा हुआ पाठ\n".encode() * 50, "DEVANAGARI"),
        ("Arabic", "العربية من اليمين\n".encode() * 50, "ARABIC"),
        ("Hebrew", "שלום עולם ".encode() * 50, "HEBREW"),
        ("Thai", "ภาษาไทย ".encode() * 50, "THAI"),
        ("emoji", "😀😃 😄😁 ".encode() * 50, "FACE"),
        ("private use", "\ue000\ue001 ".encode() * 80, "no font here draws '.ue00"),
        ("Latin-1", "Über den Flüssen wächst Gras. ".encode("latin-1") * 50, r"is no UTF-8 \(byte 0x"),
        ("UTF-16", "Plain words. ".encode("utf-16") * 50, r"is no UTF-8 \(byte 0x"),
        ("binary", bytes(range(128, 256)) * 20, r"is no UTF-8 \(byte 0x"),
    ],
)  # fmt: skip
def test_f67_a_text_that_cannot_be_drawn_costs_its_passages_and_is_named(
    name: str, data: bytes, reason: str, tmp_path: Path
) -> None:
    """F-67: such a file ended the run (ZeroDivisionError), or lost its letters without a word."""
    (tmp_path / "bad.txt").write_bytes(data)
    source = TextSource(tmp_path)
    with pytest.raises(NoText, match=reason):
        source.passage(np.random.default_rng(0), 400, drawn=Face("").covered)
    assert re.search(reason, source.faults[tmp_path / "bad.txt"])
    (page, _) = drawn(tmp_path)
    assert isinstance(page, Skipped) and page.kind == "page without text"
    (tmp_path / "good.txt").write_text("plain words " * 100)
    assert words_of(drawn(tmp_path)) <= {"plain", "words"}


def test_f67_files_of_a_command_that_cannot_be_drawn_are_told_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("plain words " * 100)
    (tmp_path / "texts/b.txt").write_text("Grün " * 2000, "latin-1")
    (tmp_path / "texts/._a.txt").write_bytes(b"\0\5\26\7" * 500)
    line = ["data", "synth", "pages", "--size", "300", "--count", "3", "--texts", str(tmp_path / "texts")]
    assert cli.main([*line, "--out", str(tmp_path / "out")]) == 0
    message = capsys.readouterr().err
    assert f"{tmp_path / 'texts/b.txt'}: it is no UTF-8 (byte 0xfc at " in message
    assert "._a" not in message and "a.txt: " not in message
    (tmp_path / "texts/a.txt").unlink()
    assert cli.main([*line, "--out", str(tmp_path / "none")]) == 2
    message = capsys.readouterr().err
    assert "b.txt: it is no UTF-8" in message and "none of 3 pages was kept" in message.splitlines()[-1]


def test_f67_a_letter_without_a_font_is_named_and_its_word_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain words \U0001f600smile " * 100)
    source = TextSource(tmp_path)
    text = source.passage(np.random.default_rng(0), 400, drawn=Face("").covered)
    assert set(text.split()) == {"plain", "words"}
    assert source.faults == {
        tmp_path / "a.txt": "no font here draws '\\U0001f600' (GRINNING FACE): words with such are left out"
    }


def test_a_passage_is_composed_and_free_of_what_has_no_ink(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "\ufeffcafe\u0301 so\u00adft zero\u200bwidth bell\x07ring \u2028next " * 60, "utf-8"
    )
    text = TextSource(tmp_path).passage(np.random.default_rng(3), 300)
    assert set(text.split()) == {"café", "soft", "zerowidth", "bell", "ring", "next"}


def test_a_place_in_the_middle_of_a_character_is_no_broken_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("€uro über 中文字 " * 200, "utf-8")
    source = TextSource(tmp_path)
    for seed in range(40):
        text = source.passage(np.random.default_rng(seed), 100)
        assert not {"\ufffd", "\0"} & set(text)
    assert source.faults == {}


@pytest.mark.parametrize("text", ["x", "one", "a" * 5000])
def test_texts_of_one_word_end_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    for page in drawn(tmp_path):
        assert isinstance(page, Skipped) if len(text) > 99 else words_of([page]) == {text}


def test_f71_hidden_and_foreign_files_among_backgrounds_are_none(tmp_path: Path) -> None:
    """F-71: macOS leaves `._a.jpg` beside `a.jpg`; `Thumbs.db` and folders are no images either."""
    (tmp_path / "b").mkdir()
    Image.new("RGB", (300, 200), "green").save(tmp_path / "b/a.JPG")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db"):
        (tmp_path / "b" / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "b/folder.png").mkdir()
    maker = PageMaker(SMALL, fonts=BUILT_IN, backgrounds=Backgrounds(tmp_path / "b"))
    assert all(not isinstance(page, Skipped) for _, page in numbered_pages(maker, 0, range(6)))


def test_letters_set_one_by_one_cover_no_script_that_joins_them() -> None:
    for text in ("ا", "א", "ि", "ั", "\u0301"):
        assert not Face("").covers(text)


# ---- Validation does not depend on the machine ----


@pytest.mark.parametrize("fonts", [BUILT_IN, Fonts.find()], ids=["no font", "this machine's"])
@pytest.mark.parametrize("share", ["2", "-0.5", "nan"])
def test_f9_a_share_of_chinese_is_checked_before_fonts_are_looked_for(
    share: str,
    fonts: Fonts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """F-9: without a Chinese font the value was set to 0 before anybody looked at it."""
    monkeypatch.setattr(Fonts, "find", lambda *folders: fonts)
    line = ["data", "synth", "pages", "--out", str(tmp_path / "out"), f"--chinese={share}"]
    assert cli.main(line) == 2
    assert "expected 0 to 1" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_f9_without_a_chinese_font_pages_are_english_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Fonts, "find", lambda *folders: BUILT_IN)
    line = [
        "data",
        "synth",
        "pages",
        "--out",
        str(tmp_path),
        "--chinese",
        "1",
        "--count",
        "1",
        "--size",
        "300",
    ]
    assert cli.main([*line, "--format", "folder"]) == 0
    assert "no font here draws Chinese" in capsys.readouterr().err
    (path,) = tmp_path.glob("*[0-9].json")
    assert not any(ord(c) > 0x2E7F for c in path.read_text("utf-8"))


@pytest.mark.parametrize(
    "words",
    [
        "pages x.pdf",
        "pages --scripts",
        "pdf a.pdf --chinese 1",
        "html a.html --look photograph",
        "pdf a.pdf --start 3",
    ],
)
def test_an_option_of_another_kind_of_page_is_refused(words: str, tmp_path: Path) -> None:
    assert cli.main(["data", "synth", *words.split(), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


# ---- Pages and rows ----


@pytest.mark.parametrize(
    "look", [Look(longest=700), replace(photograph(), longest=700)], ids=["synthdog", "photograph"]
)
@pytest.mark.parametrize("length", [700, 1500])
def test_f12_drawn_pages_fit_the_row_they_are_drawn_for(look: Look, length: int) -> None:
    """F-12: 256 visual tokens and dense text; pages longer than a row vanished in training."""
    ruler = Ruler(tokenizer=BYTES, queries=64, length=length)
    maker = PageMaker(look, fonts=BUILT_IN, tokens=length - ruler.frame(), cost=ruler.line)
    for number in range(3):
        page = maker.page(0, number)
        tokens = len(example_of(page.record("page"), BYTES, 64))
        assert 0 < tokens == ruler.page(page) <= length
        assert page.lines


def test_f12_a_page_that_fits_anyway_is_the_page_it_was() -> None:
    ruler = Ruler(tokenizer=BYTES, queries=64, length=100_000)
    free = PageMaker(SMALL, fonts=BUILT_IN).page(3, 4)
    bound = PageMaker(SMALL, fonts=BUILT_IN, tokens=100_000, cost=ruler.line).page(3, 4)
    assert free.jpeg() == bound.jpeg() and free.lines == bound.lines


def test_f12_the_command_makes_pages_that_fit_or_says_how_many_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["data", "synth", "pages", "--count", "3", "--size", "600", "--chinese", "0", "--format", "folder"]
    assert cli.main([*line, "--out", str(tmp_path / "any")]) == 0
    message = capsys.readouterr().err
    assert re.search(
        r"the longest page has [\d,]+ tokens, 256 of them its image's; .* do not fit rows of 1,024", message
    )
    counts = json.loads((tmp_path / "any/pages-000000.statistics.json").read_text())["tokens"]
    assert counts["queries"] == 256 and counts["longest"] > 1024 and 1 <= counts["over 1024"] <= 3
    assert cli.main([*line, "--out", str(tmp_path / "fit"), "--length", "800"]) == 0
    assert "all 3 fit rows of 800" in capsys.readouterr().err
    tokenizer = Tokenizer.load(Path(cli.__file__).parents[1] / "tiny")
    records = [from_json(path.read_text("utf-8")) for path in (tmp_path / "fit").glob("*[0-9].json")]
    assert len(records) == 3 and all(len(example_of(record, tokenizer, 256)) <= 800 for record in records)


def test_f12_pages_of_files_that_do_not_fit_are_counted() -> None:
    maker = PageMaker(Look(longest=600), fonts=BUILT_IN)
    pages = list(numbered_pages(maker, 0, range(3)))
    ruler = Ruler(tokenizer=BYTES, queries=64, length=900)
    expected = [None if ruler.page(page) <= 900 else "longer than 900 tokens" for _, page in pages]  # type: ignore[arg-type]
    found = [page.kind if isinstance(page, Skipped) else None for _, page in Lengths(ruler).measure(pages)]
    assert found == expected and "longer than 900 tokens" in found


@pytest.mark.parametrize(("queries", "length"), [(256, 256), (0, 900), (64, 70)])
def test_a_row_that_holds_no_page_is_refused(queries: int, length: int) -> None:
    with pytest.raises(ValueError, match="give"):
        Ruler(tokenizer=BYTES, queries=queries, length=length)
