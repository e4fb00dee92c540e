"""Every row chooses for itself: whatever stands beside it, by its own config, grammar, seed, step and history."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl.generate.choosing import Row, Settings, choose
from qwenvl.generate.grammar import Grammar
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a box at (12,34),(56,78) and more of it, more"] * 3, merges=40)
VOCAB = TOKENIZER.n_vocab + 5
GRAMMAR = Grammar(TOKENIZER, VOCAB)

configs = st.builds(
    SamplingConfig,
    greedy=st.booleans(),
    temperature=st.sampled_from([1e-5, 0.7, 1.0, 100.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([0.0, 0.3, 1.0]),
    min_p=st.sampled_from([0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, -2.0]),
    logit_bias=st.sampled_from([(), ((3, 100.0),), ((TOKENIZER.box, -100.0), (7, 5.0))]),
)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    prompt = draw(st.lists(st.integers(0, 255), min_size=1, max_size=9))
    if draw(st.booleans()):
        prompt.append(TOKENIZER.box)  # the grammar begins inside a box
    max_remaining = draw(st.integers(1, 30))
    wanted = Settings(
        max_new_tokens=max_remaining,
        min_new_tokens=draw(st.integers(0, min(max_remaining, 3))),
        sampling=draw(configs),
        stop=((TOKENIZER.im_end,), (5, 6)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        top_logprobs=draw(st.sampled_from([0, 0, 3, 20])),
    )
    grammar = GRAMMAR if draw(st.booleans()) else None
    return Row(
        prompt=prompt,
        settings=wanted,
        grammar=grammar,
        prompt_seed=draw(st.integers(0, 2)),
        max_remaining=max_remaining,
    )


def logits_of(row: int, step: int, *, rounded: bool) -> torch.Tensor:
    logits = 4 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1000 * row + step))
    return logits.round() if rounded else logits


def copy(row: Row) -> Row:
    return Row(
        prompt=row.prompt,
        settings=row.settings,
        grammar=row.grammar,
        prompt_seed=row.prompt_seed,
        max_remaining=row.max_remaining,
    )


@settings(max_examples=40)
@given(st.lists(rows(), min_size=1, max_size=6), st.booleans())
def test_rows_of_any_settings_together_equal_each_alone(together: list[Row], rounded: bool):
    alone = [copy(row) for row in together]
    for step in range(5):
        open_rows = [i for i, row in enumerate(together) if row.end is None]
        if not open_rows:
            return
        batch = torch.cat([logits_of(i, step, rounded=rounded) for i in open_rows])
        found = choose(batch, [together[i] for i in open_rows]).read()
        for i, (token, logprob, top) in zip(open_rows, found, strict=True):
            logits = logits_of(i, step, rounded=rounded)
            assert choose(logits, [alone[i]]).read() == [(token, logprob, top)]
            assert logprob == float(logits.log_softmax(-1)[0, token])
            assert together[i].write(token) == alone[i].write(token)


def row(sampling: SamplingConfig | None = None, grammar: Grammar | None = None, **values: Any) -> Row:
    wanted = dataclasses.replace(Settings(), sampling=sampling or SamplingConfig(), **values)
    return Row(prompt=[1, 2], settings=wanted, grammar=grammar, max_remaining=wanted.max_new_tokens)


def test_log_probabilities_are_the_models_own_before_bias_penalty_and_grammar():
    logits = torch.zeros(2, VOCAB)
    logits[:, 9], logits[:, TOKENIZER.box_end] = 2.0, 3.0
    biased = row(SamplingConfig(logit_bias=((4, 50.0),)), top_logprobs=2)
    ruled = row(grammar=GRAMMAR, top_logprobs=2)
    expected = logits.log_softmax(-1)[0]
    (first, first_logprob, top), (second, second_logprob, other) = choose(logits, [biased, ruled]).read()
    assert (first, first_logprob) == (4, float(expected[4]))
    assert (second, second_logprob) == (9, float(expected[9]))  # </box> is forbidden outside a box
    assert top == other == ((TOKENIZER.box_end, float(expected[TOKENIZER.box_end])), (9, float(expected[9])))


def test_tied_candidates_are_told_by_their_ids_and_no_more_than_asked():
    (_, _, none), (_, _, five) = choose(torch.zeros(2, 8), [row(), row(top_logprobs=5)]).read()
    assert none == () and [token for token, _ in five] == [0, 1, 2, 3, 4]


def test_a_ban_does_not_break_a_grammar():
    """All that may follow is banned: the grammar wins, as nothing else could be written."""
    prompt = [1, TOKENIZER.box, *TOKENIZER.encode("(1,2),(3,4)")]
    for greedy in (True, False):
        banned = SamplingConfig(greedy=greedy, logit_bias=((TOKENIZER.box_end, -100.0),))
        ruled = Row(prompt=prompt, settings=Settings(sampling=banned), grammar=GRAMMAR, max_remaining=9)
        for seed in range(5):
            assert choose(logits_of(seed, 0, rounded=False), [ruled]).read()[0][0] == TOKENIZER.box_end


def test_draws_depend_on_seed_prompt_seed_and_step():
    config, logits = SamplingConfig(greedy=False), torch.zeros(1, VOCAB)
    drawn = set()
    for seed in range(4):
        for prompt_seed in range(4):
            one = Row(
                prompt=[1],
                settings=Settings(sampling=config, seed=seed),
                prompt_seed=prompt_seed,
                max_remaining=9,
            )
            ids = []
            for _ in range(4):
                ids.append(choose(logits, [one]).read()[0][0])
                one.write(ids[-1])
            drawn.add(tuple(ids))
    assert len(drawn) == 16


def test_a_row_of_nan_is_seen_and_leaves_its_neighbours_alone():
    logits = torch.cat([logits_of(0, 0, rounded=False), torch.full((1, VOCAB), float("nan"))])
    for config in (SamplingConfig(), SamplingConfig(greedy=False, top_k=3, top_p=0.5, min_p=0.1)):
        good, bad = choose(logits, [row(config), row(config)]).read()
        assert bad[1] != bad[1] and 0 <= bad[0] < VOCAB
        assert good == choose(logits[:1], [row(config)]).read()[0]


@pytest.mark.parametrize(("min_new", "expected"), [(0, "stop"), (2, None)])
def test_a_stop_counts_once_enough_is_written(min_new: int, expected: str | None):
    assert row(min_new_tokens=min_new, stop=((4, 5), (6,))).write(6) == expected


def test_more_candidates_than_20_are_refused():
    with pytest.raises(ValueError, match="top_logprobs is 21; it must be from 0 to 20"):
        Settings(top_logprobs=21)
