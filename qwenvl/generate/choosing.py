"""The next token of every row of a batch, each by its own settings, grammar, seed and step.

```
logits --> raw log-probabilities                          what is reported
       --> forbidden by grammar or min_new_tokens: -inf   row by row, where a row has either
       --> one group of rows per SamplingConfig: penalties, then the likeliest, or warped and drawn
```
A row's choice depends on the row alone: rows that share a config are computed together, and every operation treats them
one by one; a draw is a number made from (seed, seed of the prompt, step).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from qwenvl.generate.grammar import Grammar, State
from qwenvl.generate.sampling import GREEDY, SamplingConfig, adjust, draw, stopped, uniform, warp

End: TypeAlias = Literal["stop", "length", "error"]
"""Why an answer is over: a stop was written, there was no room for another token, or the model failed on this row."""

TOP_LOGPROBS = 20
"""Most tokens whose log-probabilities are reported at a step."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an answer is written."""

    max_new_tokens: int = 512
    """Most tokens of an answer, its stop sequence included."""
    min_new_tokens: int = 0
    """Tokens before the answer may stop."""
    sampling: SamplingConfig = GREEDY
    stop: tuple[tuple[int, ...], ...] = ()
    """The answer is over once it ends with one of these; its prompt is never matched."""
    stop_when: Callable[[Sequence[int]], bool] | None = None
    """Asked with the ids of the answer after each token: whether it is over, for stops that are no sequence of ids."""
    seed: int = 0
    """With the prompt's own seed, all that draws depend on."""
    top_logprobs: int = 0
    """How many of the likeliest tokens are reported at each step, 0 to 20."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens {self.max_new_tokens}; "
                "expected 0 <= min <= max and at least one token."
            )
        if not 0 <= self.top_logprobs <= TOP_LOGPROBS:
            raise ValueError(f"top_logprobs is {self.top_logprobs}; it must be from 0 to {TOP_LOGPROBS}.")


@dataclass(kw_only=True)
class Row:
    """What the host knows of one answer being written: all that its next token depends on besides the logits."""

    prompt: Sequence[int]
    """The ids before the answer: what a repetition penalty and a grammar begin with."""
    settings: Settings
    grammar: Grammar | None = None
    prompt_seed: int = 0
    """Tells apart the draws of rows with equal settings."""
    max_remaining: int
    """Tokens that may be written at most, `max_new_tokens` and the longest row considered."""
    written: list[int] = field(default_factory=list)
    end: End | None = None

    def __post_init__(self) -> None:
        self.state: State | None = self.grammar.start(self.prompt) if self.grammar else None
        penalised = self.settings.sampling.repetition_penalty != 1
        self.seen: dict[int, None] = dict.fromkeys(self.prompt) if penalised else {}
        """Every id of prompt and answer once, where a repetition penalty asks for it."""

    @property
    def draw_at(self) -> float:
        """Where in its probabilities the row's next draw falls, in [0, 1)."""
        return uniform(self.settings.seed, self.prompt_seed, len(self.written))

    def write(self, token: int) -> End | None:
        """Append a token and decide whether it is the last."""
        self.written.append(token)
        if self.settings.sampling.repetition_penalty != 1:
            self.seen[token] = None
        is_open = False
        if self.grammar is not None and self.state is not None:
            self.state = self.grammar.advance(self.state, token)
            is_open = self.state.is_open
        if len(self.written) >= self.settings.min_new_tokens and not is_open and self._stopped():
            self.end = "stop"
        elif len(self.written) >= self.max_remaining:
            self.end = "length"
        return self.end

    def _stopped(self) -> bool:
        stop_when = self.settings.stop_when
        return stopped(self.written, self.settings.stop) or (
            stop_when is not None and stop_when(self.written)
        )


@dataclass(frozen=True)
class Choices:
    """One step of a batch, still on the device: the ids can be fed on before `read` waits for them."""

    ids: Int[Tensor, " batch"]
    logprobs: Float32[Tensor, " batch"]
    """Of the ids, under the model itself: before any penalty, warping or grammar. NaN where the model's are."""
    top: tuple[Float32[Tensor, "batch top"], Int[Tensor, "batch top"]] | None
    """The largest log-probabilities of every row and their ids, if a row asked for any."""
    asked: tuple[int, ...]
    """`top_logprobs` of every row."""

    def read(self) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]:
        """Id, log-probability and likeliest tokens of every row; the one point where the host waits for the device."""
        parts = [self.ids.double()[:, None], self.logprobs.double()[:, None]]
        if self.top is not None:
            parts += [part.double() for part in self.top]
        rows = torch.cat(parts, dim=1).tolist()
        return [
            (int(row[0]), row[1], _likeliest(row[2:], count))
            for row, count in zip(rows, self.asked, strict=True)
        ]


def _likeliest(values: list[float], count: int) -> tuple[tuple[int, float], ...]:
    """The first `count` pairs of id and log-probability, ties by id, of all log-probabilities and then all ids."""
    half = len(values) // 2
    pairs = sorted(zip(values[:half], values[half:], strict=True), key=lambda pair: (-pair[0], pair[1]))
    return tuple((int(token), logprob) for logprob, token in pairs[:count])


def choose(logits: Float[Tensor, "batch vocab"], rows: Sequence[Row]) -> Choices:
    """The next id of every row. Greedy rows without penalties cost one argmax together."""
    logits = logits.float()
    logprobs = logits.log_softmax(
        dim=-1
    )  # treats rows one by one, as logsumexp with several threads does not
    ids = _chosen(_allowed(logits, rows), rows)
    asked = tuple(row.settings.top_logprobs for row in rows)
    top = None
    if any(asked):  # always as many: which of the tied are taken must not depend on the neighbours
        values, tokens = logprobs.topk(min(TOP_LOGPROBS, logprobs.shape[-1]), dim=-1)
        top = (values, tokens)
    return Choices(ids, logprobs.gather(1, ids[:, None])[:, 0], top, asked)


def _chosen(scores: Float32[Tensor, "batch vocab"], rows: Sequence[Row]) -> Int[Tensor, " batch"]:
    groups: dict[SamplingConfig, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.settings.sampling, []).append(place)
    if len(groups) == 1:
        return _by(next(iter(groups)), scores, rows)
    ids = torch.empty(len(rows), dtype=torch.long, device=scores.device)
    for config, places in groups.items():
        index = torch.tensor(places, device=scores.device)
        ids[index] = _by(config, scores[index], [rows[place] for place in places])
    return ids


def _by(
    config: SamplingConfig, scores: Float32[Tensor, "batch vocab"], rows: Sequence[Row]
) -> Int[Tensor, " batch"]:
    """The choice of rows that share a config."""
    device = scores.device
    previous = _padded([list(row.seen) for row in rows], device) if config.repetition_penalty != 1 else None
    counted = config.frequency_penalty != 0 or config.presence_penalty != 0
    answers = _padded([row.written for row in rows], device) if counted else None
    if config.greedy:
        return adjust(scores, config, previous, answers).argmax(dim=-1)
    at = torch.tensor([row.draw_at for row in rows], dtype=torch.float64)
    return draw(warp(scores, config, previous, answers), at if device.type == "mps" else at.to(device))


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "batch tokens"]:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows], dtype=torch.long).to(device)


def _allowed(logits: Float32[Tensor, "batch vocab"], rows: Sequence[Row]) -> Float32[Tensor, "batch vocab"]:
    """The logits with -inf where a row's grammar or `min_new_tokens` forbids a token."""
    scores: Float32[Tensor, "batch vocab"] | None = None
    for place, row in enumerate(rows):
        early = len(row.written) < row.settings.min_new_tokens
        stops = [sequence[0] for sequence in row.settings.stop if len(sequence) == 1] if early else []
        if not stops and row.state is None:
            continue
        scores = logits.clone() if scores is None else scores
        if stops:
            scores[place, stops] = -torch.inf
        if row.grammar is not None and row.state is not None:
            choice = row.grammar.choice(row.state, row.max_remaining - len(row.written))
            if choice.only is not None:
                only = _index(choice.only, scores.device)
                kept = scores[place, only]
                scores[place] = -torch.inf
                scores[place, only] = kept
            elif choice.never:
                scores[place, _index(choice.never, scores.device)] = -torch.inf
    return logits if scores is None else scores


@lru_cache(maxsize=512)
def _index(ids: tuple[int, ...], device: torch.device) -> Int[Tensor, " ids"]:
    """The ids of a grammar's choice, which come back step after step, on the device."""
    return torch.tensor(ids, dtype=torch.long, device=device)
