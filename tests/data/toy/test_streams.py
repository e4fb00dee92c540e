"""Documents of the toy world: what a branch and its trunk spell together, and what no branch may see."""

import pytest

from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.toy.chats import exchanges
from qwenvl.data.toy.paint import render as paint
from qwenvl.data.toy.streams import (
    DOCUMENT_TOKENS,
    EXCHANGE_KINDS,
    EXCHANGE_TOKENS,
    EXCHANGES,
    Vocabulary,
    exchange_document,
    lookup_document,
    vocabulary_texts,
)
from qwenvl.data.toy.worlds import scene
from qwenvl.markup import Image, Turn, number_images, render_chat
from qwenvl.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def world() -> Vocabulary:
    return Vocabulary(Tokenizer.train(vocabulary_texts(100), 300), 4, 7)


def branches(document: Example) -> list[list[int]]:
    """Ids of the trunk and of each branch."""
    found: list[list[int]] = [[] for _ in range(max(document.branches) + 1)]
    for token, branch in zip(document.ids, document.branches, strict=True):
        found[branch].append(token)
    return found


def test_an_exchange_and_its_trunk_are_a_dialogue(world: Vocabulary) -> None:
    """Token by token what the same dialogue is by itself, and as many as there is room for."""
    for index in range(20):
        shown, document = scene(7, index), exchange_document(world, index)
        assert len(document) <= EXCHANGE_TOKENS and document.ids == exchange_document(world, index).ids
        trunk, *begun = branches(document)
        dialogues = []
        for asked, answer in exchanges(shown, 7, kinds=EXCHANGE_KINDS, limit=EXCHANGES):
            turns = [Turn("user", (Image(paint(shown)), *asked)), Turn("assistant", answer)]
            rendered = render_chat(
                number_images(turns), world.tokenizer, world.queries, open_for_answer=False
            )
            dialogues.append(list(rendered.ids))
        assert [*trunk, *begun[0]] == dialogues[0] and len(begun) >= 5
        assert all([*trunk, *branch] in dialogues for branch in begun)
        assert len(document.images) == 1


def test_what_is_learned_of_things_in_words_is_the_answers(world: Vocabulary) -> None:
    for index in range(20):
        document = lookup_document(world, index)
        trunk, *asked = branches(document)
        assert len(document) <= DOCUMENT_TOKENS and not document.images and 2 <= len(asked) <= 9
        text = world.tokenizer.decode(trunk)
        assert text.endswith(".") and "(" not in text, "no place"
        loss_mask = [
            (token, branch)
            for token, branch in zip(document.labels, document.branches, strict=True)
            if token != IGNORE
        ]
        for number, branch in enumerate(asked, 1):
            answer = world.tokenizer.decode([token for token, own in loss_mask if own == number])
            assert world.tokenizer.decode(branch).endswith(f" Answer:{answer}")
