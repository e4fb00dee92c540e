import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl.data.formats import IGNORE, Example, example, task
from qwenvl.data.packing import DOCUMENT, fit, pack
from qwenvl.markup import Image, Text, render
from qwenvl.model.llm import BRANCHES
from qwenvl.tokenizer import Tokenizer

TOKENIZER = Tokenizer({bytes([value]): value for value in range(256)})
QUERIES = 4


def document(length: int, *, image: bool = False) -> Example:
    trunk = render(Image("a.png"), TOKENIZER, QUERIES) if image else render("", TOKENIZER, QUERIES)
    return example(trunk + render("x" * length, TOKENIZER, QUERIES, supervised=True))


def test_the_shift_happens_once_and_only_inside_a_branch():
    trunk = render(Image("a.png"), TOKENIZER, QUERIES)
    branches = [
        task([Text("q")], [Text(" ab")], TOKENIZER, QUERIES),
        task([Text("rr")], [Text(" c")], TOKENIZER, QUERIES),
    ]
    made = example(trunk, branches)
    space, a, b, c, eos = ord(" "), ord("a"), ord("b"), ord("c"), TOKENIZER.endoftext
    image = [IGNORE] * (QUERIES + 2)
    assert list(made.labels) == [*image, space, a, b, eos, IGNORE, IGNORE, space, c, eos, IGNORE]
    assert list(made.branches) == [0] * (QUERIES + 2) + [1] * 5 + [2] * 5
    assert list(made.positions) == [*range(QUERIES + 2), *range(6, 11), *range(6, 11)]


def test_a_document_without_branches_learns_across_its_whole_length():
    made = example(render("abc", TOKENIZER, QUERIES, supervised=True))
    assert list(made.labels) == [ord("b"), ord("c"), IGNORE]


def test_segment_numbers_agree_with_the_mask_of_the_model():
    assert DOCUMENT == BRANCHES


def test_isolated_and_interleaved_rows():
    documents = [document(3), document(2)]
    isolated = pack(documents, 6, packing="isolated", pad_id=0)
    assert isolated.segments.tolist() == [[1024, 1024, 1024, 2048, 2048, 0]]
    assert isolated.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    interleaved = pack(documents, 6, packing="interleaved", pad_id=0)
    assert interleaved.segments.tolist() == [[1024] * 5 + [0]]
    assert interleaved.positions.tolist() == [[0, 1, 2, 3, 4, 0]]
    assert interleaved.labels[0, 2] == IGNORE, (
        "the end of one document does not predict the next one's beginning"
    )


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_every_document_is_packed_once_and_whole(lengths: list[int]):
    rows = fit(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)
    half_empty = sum(sum(lengths[index] for index in row) <= 32 for row in rows)
    assert half_empty <= 1, "two half-empty rows would have been one"


def test_images_keep_the_order_of_their_slots():
    documents = [document(9, image=True), document(2), document(5, image=True)]
    rows = pack(documents, 16, packing="isolated", pad_id=0)
    slots = (rows.ids == TOKENIZER.imgpad).sum()
    assert len(rows.images) == 2 and slots == 2 * QUERIES
    assert rows.fill == pytest.approx(sum(map(len, documents)) / rows.ids.size)


def test_a_document_is_never_cut():
    with pytest.raises(
        ValueError, match=r"a document of 9 tokens does not fit a row of 8; documents are never cut"
    ):
        pack([document(9)], 8, packing="isolated", pad_id=0)
    with pytest.raises(ValueError, match=r"packing is 'loose'; expected one of isolated, interleaved"):
        pack([document(1)], 8, packing="loose", pad_id=0)


def test_padding_is_neither_learned_nor_seen():
    rows = pack([document(3)], 5, packing="isolated", pad_id=7)
    assert rows.ids[0, 3:].tolist() == [7, 7]
    assert np.all(rows.labels[0, 3:] == IGNORE) and np.all(rows.segments[0, 3:] == 0)
