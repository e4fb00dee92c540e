"""Texts that took a time that grew with the square of their length (F-89): four times the text, at most eight times."""

import time
import unicodedata
from collections.abc import Callable

import pytest

from qwenvl.checkpoint.folder import resolve
from qwenvl.data.clean.edits import plain, without_html, without_patterns
from qwenvl.evaluation.metrics.ptb import tokenise
from qwenvl.tokenizer import Tokenizer, nfc

TOKENIZER = Tokenizer.load(resolve("tiny"))

TEXTS = {
    "file names": "a.a.jpg ", "names without end": "a.", "one name": "a.a.jpg", "domains": "a.com.", "mails": "a+",
    "ats": "a@", "tildes": "~.", "per cent": "%.", "commas": "、", "marks": "\u0301\u0316", "letters": "a",
    "hyphens": "a-", "comments": "<!--", "scripts": "<script ", "tags": "<b ", "entities": "&amp;", "brackets": "( ",
    "quotes": "''", "dots": ". ", "digits": "1.", "urls": "http://a.", "www": "www.a.", "slashes": "a/", "signs": "-_",
    "words": "a b ",
}  # fmt: skip

WORK: dict[str, Callable[[str], object]] = {
    "tokenizer": TOKENIZER.encode,
    "ptb": lambda text: tokenise([text, text[:50]]),
    "plain": plain,
    "html": without_html,
    "patterns": without_patterns,
}


def seconds(work: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    work(text)
    return time.process_time() - start


@pytest.mark.parametrize("name", WORK)
def test_f89_time_grows_with_the_text(name: str) -> None:
    """Measured in processor time; what is quick at 16,000 characters is passed over, so noise decides nothing."""
    work, small, large = WORK[name], 4_000, 16_000
    for kind, piece in TEXTS.items():
        text = "a" + ("jpg.com@ " if name == "patterns" else "") + piece * (large // len(piece))
        took = seconds(work, text)
        if took > 0.25:
            again = (seconds(work, text) < 8 * seconds(work, text[:small]) + 0.1 for _ in range(3))
            assert took < 8 * seconds(work, text[:small]) + 0.1 or any(again), f"{kind}: {took:.2f} s"


def test_sorted_marks_give_the_same_text() -> None:
    for run in ("\u0301\u0316\u0344" * 2_000, "\u0345\u0323\u0307\u0f73" * 800, "\u1e9b"):
        text = f"x{'é' * 3}{run}e{run}\uac00{run}" + "a" * 2_000
        assert nfc(text) == unicodedata.normalize("NFC", text)


def test_entities_of_thousands_of_digits_are_no_characters() -> None:
    assert without_html("a &#" + "1" * 5_000 + "; b &#65;") == "a   b A"


def test_hidden_parts_are_cut_and_open_ones_stay() -> None:
    assert without_html("a <!-- x --> b <SCRIPT a>1</script > c <style>d") == "a b c <style>d".replace(
        "<style>", "<style>"
    )
    assert without_html("<!-- a <b>c</b> <!-- d") == "<!-- a c <!-- d"
