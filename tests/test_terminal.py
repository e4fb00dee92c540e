"""What comes from outside cannot drive the terminal."""

import json
import sys
import unicodedata

from qwenvl.terminal import printable, printable_json


def test_f90_control_characters_are_shown_as_escapes() -> None:
    assert printable("\x1b]0;title\x07\x9b2Ja\r\nb\x7f") == r"\x1b]0;title\x07\x9b2Ja\r\nb\x7f"
    assert (
        printable("a\u202eb\u2066c\u2028\ud800\ufeff\U000e0041")
        == r"a\u202eb\u2066c\u2028\ud800\ufeff\U000e0041"
    )


def test_f90_nothing_invisible_is_shown_as_it_is() -> None:
    """Every character that Unicode calls a control, a format or a separator of lines, but the two joiners."""
    every = map(chr, range(sys.maxunicode + 1))
    odd = "".join(each for each in every if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
    shown = printable(odd.replace("\u200c", "").replace("\u200d", ""))
    assert shown.isascii() and shown.isprintable()


def test_json_for_a_terminal_is_the_same_value() -> None:
    value = {"a\x1b\x9b2J\x7f": ["b\u202e\u2028", "漢字", "\U000e0041", 1.5, None, True]}
    line = printable_json(value)
    assert json.loads(line) == value
    assert line.isprintable() and "漢字" in line
    assert printable_json({"a": [float("nan"), (float("inf"), 1)]}) == '{"a": [null, [null, 1]]}'


def test_text_of_every_script_stays_as_it_is() -> None:
    for text in ("漢字\u3000かな", "naïve\xa0Café", "👩\u200d🚀", "می\u200cخواهم", "a\\x1b [b]"):
        assert printable(text) == text


def test_an_answer_keeps_its_lines() -> None:
    assert printable("a\n\tb\x1b[1m\r", lines=True) == "a\n\tb\\x1b[1m\\r"
    assert printable(3) == "3"
