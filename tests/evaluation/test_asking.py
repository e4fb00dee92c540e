"""Rows of an evaluation come and go in one engine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwenvl.chat import Assistant
from qwenvl.evaluation.asking import Asker, Decoding
from qwenvl.generate import engine, likelihood
from qwenvl.generate.engine import Engine, Prompt, Token

LONGEST = 64
"""Tokens of prompt and answer: what is left of it is how long an answer gets."""


@pytest.fixture()
def asker(monkeypatch: pytest.MonkeyPatch) -> Asker:
    monkeypatch.setattr(engine, "longest_row", lambda model: LONGEST)
    return Asker(Assistant.load(Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"))


def prompt(new: int, *images: np.ndarray, queries: int = 0, pad: int = 0) -> Prompt:
    """One whose answer has so many tokens."""
    slots = (pad,) * queries * len(images)
    return Prompt(ids=(*slots, *(5 + at % 90 for at in range(LONGEST - new - len(slots)))), pixels=images)


ALL = Decoding(max_new_tokens=LONGEST, min_new_tokens=LONGEST)


def test_a_long_answer_holds_back_nobody(asker: Asker, monkeypatch: pytest.MonkeyPatch):
    step, decoded = Engine.step, []

    def counting(self: Engine) -> list[Token]:
        tokens = step(self)
        decoded.append(len(tokens))
        return tokens

    monkeypatch.setattr(Engine, "step", counting)
    lengths, taken = [50, 6, 5, 7, 4], []

    def coming() -> Iterator[Prompt]:
        for number, new in enumerate(lengths):
            taken.append((number, sum(map(bool, decoded))))
            yield prompt(new)

    places = [place for ended in asker.write_each(coming(), ALL, rows=2) for place, _ in ended]
    assert places == [1, 2, 3, 4, 0]
    assert [number for number, _ in taken] == [0, 1, 2, 3, 4]
    assert all(at > 0 for _, at in taken[2:]), "a prompt is taken when there is a place for it"
    assert sum(map(bool, decoded)) < 50 + len(lengths) < sum(lengths)


def test_rows_that_come_and_go_write_what_each_writes_alone(asker: Asker):
    config = asker.assistant.model.config
    side, queries, pad = config.vision.image_size, config.adapter.queries, config.imgpad_id
    image = np.random.default_rng(0).standard_normal((3, side, side), dtype=np.float32)
    prompts = [prompt(new, image, queries=queries, pad=pad) for new in (30, 8, 3, 12)] + [prompt(9)]
    found = dict(each for ended in asker.write_each(prompts, ALL, rows=2) for each in ended)
    assert [found[place] for place in range(5)] == asker.write(prompts, ALL)
    assert [asker.write([each], ALL) for each in prompts] == [[found[place]] for place in range(5)]


def test_an_image_of_many_questions_is_encoded_once(asker: Asker, monkeypatch: pytest.MonkeyPatch):
    model, encoded = asker.assistant.model, []
    embed = model.vision.patch_embed.forward
    monkeypatch.setattr(
        model.vision.patch_embed, "forward", lambda pixels: encoded.append(len(pixels)) or embed(pixels)
    )
    config = model.config
    side, queries, pad = config.vision.image_size, config.adapter.queries, config.imgpad_id
    image = np.zeros((3, side, side), np.float32)
    prompts = [prompt(new, image, queries=queries, pad=pad) for new in (3, 4, 5, 6)]
    assert len(list(asker.write_each(iter(prompts), ALL, rows=1))) == 4 and encoded == [1]


def test_no_prompts_no_answers(asker: Asker):
    assert asker.write([], ALL) == [] and list(asker.write_each([], ALL, rows=3)) == []


def test_a_whole_option_is_as_likely_as_its_tokens_and_what_ends_an_answer(asker: Asker) -> None:
    options = [[" a", " cat", " two words"]]
    (parts,), (whole,) = (asker.likelihoods([prompt(8)], options, whole=each) for each in (False, True))
    assert [len(each) for each in whole] == [len(each) + 1 for each in parts]
    assert [each[:-1] for each in whole] == [pytest.approx(each, abs=1e-5) for each in parts]
    tokenizer = asker.assistant.tokenizer
    for format, end in (("raw", tokenizer.endoftext), ("chatml", tokenizer.im_end)):
        ((said, *_),) = asker.asked_in(format).likelihoods([prompt(8)], options, whole=True)
        ids = [*tokenizer.encode(" a"), end]
        assert likelihood.score(asker.assistant.model, [prompt(8)], [[ids]]) == [
            [pytest.approx(said, abs=1e-5)]
        ]
