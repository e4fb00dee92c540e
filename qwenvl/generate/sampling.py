"""From the logits of one step to the next token: greedy, or drawn from warped probabilities.

The four warpers of transformers 4.31, under which the official code was released, in their order; between them, what
the OpenAI interface knows, and last, as in today's transformers, min-p:

    logits --repetition penalty--> - frequency, presence penalty --> + logit bias
           --> temperature --> top-k --> top-p --> min-p --> softmax --> draw

Removed tokens have the score -inf. Everything is computed in float32 whatever the model computes in, and row by row: a
row's scores, and its draw, are the same whatever stands beside it.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

BANNED = -1e30
"""Added for a bias of -100: never chosen while another is allowed, but above what a grammar forbids."""

BIASED_TOKENS = 1024
"""Most entries of a logit bias."""

_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (1e-5, 100, "it must be above 0 (for the likeliest token: greedy=True) and at most 100"),
    "top_p": (0, 1, "it must be from 0 (the likeliest token) to 1 (all tokens)"),
    "min_p": (0, 1, "it must be from 0 (keep all tokens) to 1 (the likeliest token)"),
    "repetition_penalty": (1e-3, 100, "it must be a number above 0 and at most 100 (1 changes nothing)"),
    "frequency_penalty": (-2, 2, "it must be from -2 to 2 (0 changes nothing)"),
    "presence_penalty": (-2, 2, "it must be from -2 to 2 (0 changes nothing)"),
}
"""Least and largest value of a number, and what to say about another. Within them no float32 overflows."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen. The default is greedy, as in the paper's evaluations (Appendix D)."""

    greedy: bool = True
    """Take the likeliest token; `temperature`, `top_k`, `top_p` and `min_p` are then unused."""
    temperature: float = 1.0
    """Logits are divided by it: below 1 sharper, above 1 flatter. More than 0, at most 100."""
    top_k: int = 0
    """Keep the k likeliest tokens, and those that tie with the last of them. 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability, at least one. 1 keeps all.
    The released generation_config.json draws with 0.5 (Qwen-VL) and 0.3 (Qwen-VL-Chat)."""
    min_p: float = 0.0
    """Keep the tokens that are at least this share as likely as the likeliest. 0 keeps all."""
    repetition_penalty: float = 1.0
    """Scores of tokens seen before are divided by it when positive, multiplied when negative. 1 changes nothing."""
    frequency_penalty: float = 0.0
    """Taken off the score of a token for each time it stands in the answer. From -2 to 2."""
    presence_penalty: float = 0.0
    """Taken off the score of every token that stands in the answer, once. From -2 to 2."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of an id and what is added to its score, from -100 to 100; -100 bans the token."""

    def __post_init__(self) -> None:
        if not isinstance(self.greedy, bool):
            raise ValueError(f"greedy is {_shown(self.greedy)}; expected True or False.")
        for name, (least, most, expected) in _RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not least <= value <= most:
                raise ValueError(f"{name} is {_shown(value)}; {expected}.")
        if not _is_whole(self.top_k) or self.top_k < 0:
            raise ValueError(
                f"top_k is {_shown(self.top_k)}; it must be a whole number from 0 (keep all tokens)."
            )
        checked_bias(self.logit_bias)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ValueError for a bias on an id that a model of `vocab_size` rows does not have."""
        for token, _ in self.logit_bias:
            if token >= vocab_size:
                raise ValueError(
                    f"logit_bias names the id {_shown(token)}; the model knows 0 to {vocab_size - 1}."
                )


def checked_bias(pairs: Any) -> tuple[tuple[int, float], ...]:
    """The pairs of an id and a bias as they are. Raises ValueError for what is none, out of range or there twice."""
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"logit_bias is {_shown(pairs)}; expected pairs of an id and a bias.")
    if len(pairs) > BIASED_TOKENS:
        raise ValueError(f"logit_bias has {len(pairs)} entries; at most {BIASED_TOKENS} are taken.")
    for token, bias in pairs:
        if not _is_whole(token) or token < 0:
            raise ValueError(f"logit_bias names the id {_shown(token)}; expected a whole number from 0.")
        if not _is_number(bias) or not -100 <= bias <= 100:
            raise ValueError(
                f"logit_bias of the id {_shown(token)} is {_shown(bias)}; it must be from -100 (never) to 100."
            )
    if len({token for token, _ in pairs}) < len(pairs):
        raise ValueError("logit_bias names an id twice; give each once.")
    return pairs


def _is_number(value: Any) -> bool:
    """Whether this is a finite number; truth values are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return isinstance(value, numbers.Integral) or math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int, most: int, expected: str = "") -> None:
    """Raise ValueError for what is no whole number from `least` to `most`."""
    if not _is_whole(value) or not least <= value <= most:
        expected = expected or f"a whole number from {least} to {most}"
        raise ValueError(f"{name} is {_shown(value)}; expected {expected}.")


def _shown(value: Any) -> str:
    """A value in a sentence, its begin where it is long (whole numbers of thousands of digits cannot be printed)."""
    if _is_whole(value) and abs(value) >= 10**20:
        return "a whole number of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


GREEDY = SamplingConfig()


# === Scores ===


def warp(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    previous_ids: Int[Tensor, "batch tokens"] | None = None,
    answer_ids: Int[Tensor, "batch written"] | None = None,
) -> Float32[Tensor, "batch vocab"]:
    """The scores whose softmax is drawn from: all warpers in order, whether `config` is greedy or not."""
    scores = adjust(logits, config, previous_ids, answer_ids) / config.temperature
    return keep_min_p(keep_top_p(keep_top_k(scores, config.top_k), config.top_p), config.min_p)


def adjust(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    previous_ids: Int[Tensor, "batch tokens"] | None = None,
    answer_ids: Int[Tensor, "batch written"] | None = None,
) -> Float32[Tensor, "batch vocab"]:
    """The scores behind penalties and bias: what also moves the greedy choice.

    `previous_ids`, prompt and answer so far, matter to the repetition penalty alone, `answer_ids`, the answer alone, to
    the frequency and presence penalties; negative ids are padding.
    """
    scores = penalise(logits.float(), config.repetition_penalty, previous_ids)
    scores = penalise_counts(scores, config.frequency_penalty, config.presence_penalty, answer_ids)
    if config.logit_bias:
        tokens = torch.tensor([token for token, _ in config.logit_bias], device=scores.device)
        added = [BANNED if bias == -100 else float(bias) for _, bias in config.logit_bias]
        scores = scores.index_add(1, tokens, scores.new_tensor(added).expand(len(scores), -1))
    return scores


def penalise(
    scores: Float32[Tensor, "batch vocab"], penalty: float, previous_ids: Int[Tensor, "batch tokens"] | None
) -> Float32[Tensor, "batch vocab"]:
    """Scores with every token of `previous_ids` made less likely by `penalty` > 1, once however often it occurred."""
    if penalty == 1 or previous_ids is None:
        return scores
    seen = _counts(previous_ids, scores) > 0
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def penalise_counts(
    scores: Float32[Tensor, "batch vocab"],
    frequency: float,
    presence: float,
    answer_ids: Int[Tensor, "batch written"] | None,
) -> Float32[Tensor, "batch vocab"]:
    """Scores less `frequency` for each time a token stands in `answer_ids`, and less `presence` if it does at all."""
    if (frequency == 0 and presence == 0) or answer_ids is None:
        return scores
    counts = _counts(answer_ids, scores)
    return scores - frequency * counts - presence * (counts > 0)


def _counts(
    ids: Int[Tensor, "batch tokens"], scores: Float32[Tensor, "batch vocab"]
) -> Float32[Tensor, "batch vocab"]:
    """How often each token stands in its row."""
    batch, vocab = scores.shape
    counts = scores.new_zeros(batch, vocab + 1)  # the last column: padding
    places = ids.long().masked_fill(ids < 0, vocab)
    return counts.scatter_add_(1, places, torch.ones_like(places, dtype=counts.dtype))[:, :vocab]


def keep_top_k(scores: Float32[Tensor, "batch vocab"], k: int) -> Float32[Tensor, "batch vocab"]:
    """Scores with all but the `k` largest of a row at -inf; ties with the k-th stay; 0 keeps all."""
    if k == 0 or k >= scores.shape[-1]:
        return scores
    kth = scores.topk(k, dim=-1).values[:, -1:]
    return scores.masked_fill(scores < kth, -torch.inf)


def keep_top_p(scores: Float32[Tensor, "batch vocab"], p: float) -> Float32[Tensor, "batch vocab"]:
    """Scores with the unlikeliest tokens, which together have at most probability 1 - `p`, at -inf."""
    if p == 1:
        return scores
    if scores.device.type == "cpu":  # values alone sort in a quarter of the time at 152k tokens
        ascending = torch.from_numpy(np.sort(scores.detach().numpy(), axis=-1))
        count = _unlikely(ascending, p).sum(dim=-1, keepdim=True)
        removed = scores < ascending.gather(1, count)  # less than the smallest that stays
        if torch.equal(removed.sum(dim=-1, keepdim=True), count):
            return scores.masked_fill(removed, -torch.inf)
    # Which of the tokens that tie at the border go is up to torch's sort, as in transformers.
    ascending, order = scores.sort(dim=-1, stable=scores.device.type != "cpu")
    removed = _unlikely(ascending, p)
    return scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def _unlikely(ascending: Float32[Tensor, "batch vocab"], p: float) -> Bool[Tensor, "batch vocab"]:
    """Which of the sorted scores together have at most probability 1 - `p`; never the last."""
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    removed[:, -1] = False  # rounding must not remove the likeliest
    return removed


def keep_min_p(scores: Float32[Tensor, "batch vocab"], p: float) -> Float32[Tensor, "batch vocab"]:
    """Scores with all tokens less likely than `p` times the likeliest at -inf; 0 keeps all."""
    if p == 0:
        return scores
    probabilities = scores.softmax(dim=-1)
    return scores.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


# === Draws ===


def draw(scores: Float32[Tensor, "batch vocab"], at: Float64[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The token of every row at the share `at`, in [0, 1), of its probabilities laid end to end.

    Scores that are no numbers give any token; who reads the log-probability sees it.
    """
    if scores.device.type == "mps":  # which has no float64
        return draw(scores.cpu(), at.cpu()).to(scores.device)
    ends = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    found = torch.searchsorted(ends, at[:, None].to(ends) * ends[:, -1:], right=True)[:, 0]
    return found.clamp(max=scores.shape[-1] - 1)


def uniform(*key: int) -> float:
    """A number in [0, 1) that `key`, such as a seed and a step, alone decides, on every machine and device."""
    digest = blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 12) / 2**52


def stopped(generated: Sequence[int], sequences: Iterable[Sequence[int]]) -> bool:
    """Whether the generated ids end with one of the stop sequences.

    Give the answer without its prompt: the official code also matches the prompt, so that a stop sequence lying
    across the border ends the answer before it begins.
    """
    return any(
        len(sequence) > 0 and tuple(generated[-len(sequence) :]) == tuple(sequence) for sequence in sequences
    )
