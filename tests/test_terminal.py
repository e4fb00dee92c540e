"""What comes from outside cannot drive the terminal."""

from qwenvl.terminal import printable


def test_f90_control_characters_are_shown_as_escapes() -> None:
    assert printable("\x1b]0;title\x07\x9b2Ja\r\nb\x7f") == r"\x1b]0;title\x07\x9b2Ja\r\nb\x7f"
    assert (
        printable("a\u202eb\u2066c\u2028\ud800\ufeff\U000e0041")
        == r"a\u202eb\u2066c\u2028\ud800\ufeff\U000e0041"
    )


def test_text_of_every_script_stays_as_it_is() -> None:
    for text in ("漢字\u3000かな", "naïve\xa0Café", "👩\u200d🚀", "می\u200cخواهم", "a\\x1b [b]"):
        assert printable(text) == text


def test_an_answer_keeps_its_lines() -> None:
    assert printable("a\n\tb\x1b[1m\r", lines=True) == "a\n\tb\\x1b[1m\\r"
    assert printable(3) == "3"
