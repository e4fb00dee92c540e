"""Sampling: the warpers against transformers', the penalty by hand, seeds, and the sentences of bad settings."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as independent

from qwenvl.generate.sampling import SamplingConfig, adjust, draw, keep_top_p, stopped, uniform, warp

ROWS, VOCAB = 5, 64


def some_logits(seed: int, *, tied: bool = False) -> torch.Tensor:
    logits = 3 * torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(seed))
    return logits.round() if tied else logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.7, 0, 0.9),
        (1.4, 10, 1.0),
        (0.5, 7, 0.6),
        (1.0, 0, 0.01),
        (1.0, 0, 0.0),
        (2.0, 500, 0.95),
        (1.0, 1, 0.5),
    ],
)
def test_warps_as_transformers_does(temperature, top_k, top_p, penalty, tied):
    logits = some_logits(1, tied=tied)
    ids = torch.randint(VOCAB, (ROWS, 9), generator=torch.Generator().manual_seed(2))
    expected = independent.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    expected = independent.TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k:
        expected = independent.TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1:
        expected = independent.TopPLogitsWarper(top_p)(ids, expected)
    config = SamplingConfig(
        greedy=False, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty
    )
    assert torch.equal(warp(logits, config, ids), expected)


def test_the_penalty_also_moves_the_greedy_choice():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    seen = torch.tensor([[0, 0]])
    assert adjust(logits, SamplingConfig(repetition_penalty=1.2), seen).argmax(-1).tolist() == [1]
    scores = warp(logits, SamplingConfig(repetition_penalty=2.0), torch.tensor([[0, 2]]))
    assert scores.tolist() == [[1.0, pytest.approx(1.9), -2.0]]


@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (9, 0.8)])
def test_min_p_comes_last_as_in_transformers(min_p, top_k, top_p):
    logits = some_logits(6)
    expected = independent.TemperatureLogitsWarper(0.8)(None, logits.clone())
    if top_k:
        expected = independent.TopKLogitsWarper(top_k)(None, expected)
        expected = independent.TopPLogitsWarper(top_p)(None, expected)
    expected = independent.MinPLogitsWarper(min_p)(None, expected)
    config = SamplingConfig(greedy=False, temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
    assert torch.equal(warp(logits, config), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_top_p_over_a_large_vocabulary_with_many_ties_is_that_of_transformers(p):
    logits = (3 * torch.randn(2, 30_000, generator=torch.Generator().manual_seed(8))).bfloat16().float()
    assert torch.equal(keep_top_p(logits, p), independent.TopPLogitsWarper(p)(None, logits.clone()))


def test_frequency_and_presence_count_the_answer_alone():
    """OpenAI: logit - count * frequency - (count > 0) * presence, over what was written."""
    logits = torch.zeros(2, 4)
    answers = torch.tensor([[-1, 1, 1, 3], [0, 2, 2, 2]])
    prompt_and_answer = torch.tensor([[2, 2, 1, 1, 3], [1, 0, 2, 2, 2]])
    config = SamplingConfig(frequency_penalty=0.5, presence_penalty=0.25)
    expected = [[0.0, -1.25, 0.0, -0.75], [-0.75, 0.0, -1.75, 0.0]]
    assert adjust(logits, config, prompt_and_answer, answers).tolist() == expected
    raised = adjust(logits, SamplingConfig(frequency_penalty=-2.0), None, answers)
    assert raised.tolist() == [[0.0, 4.0, 0.0, 2.0], [2.0, 0.0, 6.0, 0.0]]


def test_a_bias_is_added_and_minus_100_bans():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    config = SamplingConfig(greedy=False, logit_bias=((0, 1.5), (2, -100)), temperature=1e-5)
    assert adjust(logits, config).argmax(-1).tolist() == [0]
    assert warp(logits, config).softmax(-1).tolist() == [[1.0, 0.0, 0.0]]
    flat = SamplingConfig(greedy=False, logit_bias=((2, -100),), temperature=100)
    assert all(int(draw(warp(logits, flat), at(i))) != 2 for i in range(50))
    everything = SamplingConfig(greedy=False, logit_bias=((0, -100), (1, -100), (2, -100)))
    assert warp(logits, everything).isfinite().all()  # what a grammar leaves over can still be chosen among
    with pytest.raises(ValueError, match="logit_bias names the id 3; the model knows 0 to 2"):
        SamplingConfig(logit_bias=((3, 1.0),)).check_vocabulary(3)


def test_negative_previous_ids_are_padding():
    logits, config = some_logits(4), SamplingConfig(repetition_penalty=1.5)
    ids = torch.randint(VOCAB, (ROWS, 4))
    padded = torch.cat([torch.full((ROWS, 3), -1), ids], dim=1)
    assert torch.equal(warp(logits, config, padded), warp(logits, config, ids))
    assert torch.equal(warp(logits, config, padded[:, :3]), logits)


def test_the_logits_are_left_alone_and_half_precision_is_widened():
    logits = some_logits(5)
    before = logits.clone()
    config = SamplingConfig(greedy=False, temperature=0.3, top_k=5, top_p=0.5, repetition_penalty=1.5)
    warp(logits, config, torch.zeros(ROWS, 1, dtype=torch.long))
    assert torch.equal(logits, before)
    assert warp(logits.bfloat16(), config).dtype == torch.float32


def at(*key: int) -> torch.Tensor:
    return torch.tensor([uniform(*key)], dtype=torch.float64)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[1.0, 0.0, -1.0, 5.0]])
    logits[:, 3] = -torch.inf
    scores = warp(logits, SamplingConfig(greedy=False, temperature=0.8)).repeat(20_000, 1)
    shares = torch.tensor([uniform(7, step) for step in range(len(scores))], dtype=torch.float64)
    frequencies = torch.bincount(draw(scores, shares), minlength=4) / len(scores)
    assert torch.allclose(frequencies, (logits[0] / 0.8).softmax(dim=0), atol=0.01)


def test_draws_at_the_ends_take_the_first_and_the_last_possible_token():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    ends = torch.tensor([0.0, 1 - 2**-52], dtype=torch.float64)
    assert draw(scores.repeat(2, 1), ends).tolist() == [1, 3]


def test_the_numbers_of_draws_are_even_and_told_apart_by_every_part_of_their_key():
    numbers = [
        uniform(seed, prompt, step) for seed in range(10) for prompt in range(10) for step in range(10)
    ]
    assert len(set(numbers)) == 1000 and all(0 <= number < 1 for number in numbers)
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert ((counts - 100) ** 2 / 100).sum() < 27.9  # chi-squared with 9 degrees of freedom: p > 0.001
    assert uniform(1, 23) != uniform(12, 3) and uniform(-1, 0) != uniform(1, 0)
    assert 0 <= uniform(2**63 - 1, 0, 5) < 1


def test_at_least_one_token_is_always_kept():
    flat = torch.zeros(1, 4096)
    assert warp(flat, SamplingConfig(greedy=False, top_p=1e-9)).isfinite().sum() >= 1
    assert warp(flat, SamplingConfig(greedy=False, min_p=1.0)).isfinite().sum() >= 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"temperature": 0.0},
            "temperature is 0.0; it must be above 0 .for the likeliest token: greedy=True",
        ),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1; it must be a whole number from 0"),
        ({"top_p": -0.1}, "top_p is -0.1; it must be from 0 .the likeliest token. to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be a number above 0"),
        ({"min_p": 1.1}, "min_p is 1.1; it must be from 0 .keep all tokens. to 1"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1; it must be from -2 to 2"),
        ({"presence_penalty": float("-inf")}, "presence_penalty is -inf"),
        ({"logit_bias": ((-1, 0.0),)}, "logit_bias names the id -1; expected a whole number from 0"),
        ({"logit_bias": ((1, 100.5),)}, "logit_bias of the id 1 is 100.5; it must be from -100"),
        ({"logit_bias": ((1, float("nan")),)}, "logit_bias of the id 1 is nan"),
        ({"logit_bias": ((1, 2.0), (1, 3.0))}, "logit_bias names an id twice"),
        ({"logit_bias": tuple((i, 1.0) for i in range(1025))}, "1025 entries; at most 1024"),
    ],
)
def test_bad_settings_get_one_clear_sentence(setting, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**setting)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SamplingConfig(greedy=False), **setting)


NUMBERS = ["temperature", "top_k", "top_p", "min_p"]
PENALTIES = ["repetition_penalty", "frequency_penalty", "presence_penalty"]


def of_any_type(name: str, value: object) -> SamplingConfig:
    """As a caller without type checks makes it (the tests check every argument), not yet validated."""
    config = object.__new__(SamplingConfig)
    config.__dict__.update({**vars(SamplingConfig()), name: value})
    return config


@pytest.mark.parametrize("name", [*NUMBERS, *PENALTIES])
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, True, "0.5", None, [1], -(10**400)]
)
def test_what_is_no_number_in_range_is_refused_whatever_it_is(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be "):
        of_any_type(name, value).__post_init__()


@pytest.mark.parametrize(
    ("generated", "expected"),
    [([1, 2, 3], True), ([2, 3], True), ([3], False), ([2, 3, 1], False), ([], False), ([9], True)],
)
def test_stops_where_the_answer_ends_with_a_stop_sequence(generated, expected):
    assert stopped(generated, [[2, 3], (9,), []]) is expected
