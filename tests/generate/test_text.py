"""Text of an answer as it comes: pieces that are never taken back and are together the whole."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenvl.generate.text import StopStrings, TextDecoder, first_stop
from qwenvl.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat é 你好 sat \n\n the hat END 😀😀"] * 3, merges=60)
STOP_IDS = ((TOKENIZER.im_end,), tuple(TOKENIZER.encode("Human:")))
ALPHABET = " \n\tabEND你é😀\u2028H<"

texts = st.text(alphabet=ALPHABET, max_size=25)
stops = st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=5), max_size=3)
tokens = st.one_of(
    st.integers(0, TOKENIZER.n_vocab + 3),
    st.sampled_from([TOKENIZER.box, TOKENIZER.im_end, *TOKENIZER.encode("Human: 你😀 \n")]),
)


def one_by_one(ids: list[int], stop: list[str], *, strip: bool = True) -> tuple[str, TextDecoder]:
    """What a reader of the stream has at the end; checks that no piece is ever in doubt."""
    decoder = TextDecoder(TOKENIZER, stop_ids=STOP_IDS, stop=stop, strip=strip)
    shown = "".join(decoder.push([token]) for token in ids) + decoder.finish()
    assert shown == decoder.text
    return shown, decoder


def expected(ids: list[int], stop: list[str]) -> str:
    """The whole at once: without a stop sequence at its end, cut before what stops first, without space around it."""
    longest = max((len(s) for s in STOP_IDS if tuple(ids[-len(s) :]) == s), default=0)
    text = TOKENIZER.decode(ids[: len(ids) - longest])
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(string) for string in stop)]
    if ends:
        text = text[: ends[0]]
        text = text[: -max(len(string) for string in stop if text.endswith(string))]
    return text.strip()


@given(st.lists(tokens, max_size=30), stops)
@example(TOKENIZER.encode("\n\nHi"), ["\n\n"])
@example([0xE4, 0xBD], [])
@example([TOKENIZER.im_end, 65, TOKENIZER.im_end], [])
def test_the_pieces_of_any_ids_are_together_the_text_of_the_whole(ids: list[int], stop: list[str]):
    shown, _ = one_by_one(ids, stop)
    assert shown == expected(ids, stop)
    at_once = TextDecoder(TOKENIZER, stop_ids=STOP_IDS, stop=stop)
    assert at_once.push(ids) + at_once.finish() == shown


@given(texts, stops)
def test_a_stop_is_found_however_the_text_falls_into_tokens(text: str, stop: list[str]):
    """Whole words or byte by byte: the same text, and the engine stops at the token that completes the stop."""
    words = TOKENIZER.encode(text)
    shown, decoder = one_by_one(
        [single(byte) for word in words for byte in TOKENIZER.token_bytes(word)], stop
    )
    assert shown == one_by_one(words, stop)[0]
    over = StopStrings(stop, TOKENIZER)
    first = next((n for n in range(1, len(words) + 1) if over(words[:n])), None)
    assert (first is not None) == decoder.stopped
    if first is not None:
        assert one_by_one(words[:first], stop)[0] == shown


def single(byte: int) -> int:
    """The id of one byte."""
    return next(i for i in range(TOKENIZER.n_ranks) if TOKENIZER.token_bytes(i) == bytes([byte]))


def test_half_a_character_waits_and_is_replaced_only_at_the_end():
    decoder = TextDecoder(TOKENIZER)
    first, *rest = [single(byte) for byte in "你".encode()]
    assert decoder.push([first]) == decoder.push(rest[:1]) == ""
    assert decoder.push(rest[1:]) == "你"
    assert decoder.push([first]) == "" and decoder.finish() == "\ufffd"


def test_what_may_be_a_stop_or_the_last_space_waits():
    decoder = TextDecoder(TOKENIZER, stop=["END"])
    ids = [single(byte) for byte in b" a  EN ENDx"]
    assert [decoder.push([token]) for token in ids] == ["", "a", "", "", "", "", "  EN", "", "", "", ""]
    assert decoder.stopped and decoder.finish() == "" and decoder.text == "a  EN"


def test_space_around_an_answer_can_be_kept():
    shown, _ = one_by_one([single(byte) for byte in b"  a b \n"], [], strip=False)
    assert shown == "  a b \n"


def test_of_several_stops_the_first_that_is_complete_counts():
    assert first_stop("xabcy", ["abc", "b"]) == 2
    assert first_stop("xabcy", ["bc", "abc"]) == 1
    assert first_stop("xaby", ["abc"]) is None


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ("END", "stop is 'END'; expected strings"),
        ([""], "none of them empty"),
        ([1], "expected strings"),
        ([str(i) for i in range(17)], "stop has 17 strings; at most 16"),
        (["a" * 257], "a string of 257 characters; at most 256"),
        (["a\ufffd"], re.escape("'a\\ufffd'")),
        (["\ud800"], "halves of surrogate pairs"),
    ],
)
def test_stops_that_cannot_be_looked_for_are_refused(stop, message):
    for make in (lambda: TextDecoder(TOKENIZER, stop=stop), lambda: StopStrings(stop, TOKENIZER)):
        with pytest.raises(ValueError, match=message):
            make()
