"""Answers from prompts, each joining and leaving whenever it does: `add`, `abort`, `step`.

    add --> scheduler --quantum--> runner: ViT slices, prompt chunks, one token for all running rows --> tokens
                ^------------------- seconds -----------------------------'

`generate` and `stream` are loops over the same engine. On a CPU a row's answer does not depend on its neighbours, bit
by bit: what it computes follows its own length, its draws its own seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import torch

from qwenvl.generate.choosing import End as End
from qwenvl.generate.choosing import Settings as Settings
from qwenvl.generate.choosing import choose
from qwenvl.generate.grammar import Grammar
from qwenvl.generate.memory import tokens_for
from qwenvl.generate.prompts import Prompt, check, longest_row
from qwenvl.generate.runner import Request, Runner
from qwenvl.generate.scheduler import Decode, Preempt, Read, Scheduler, See, Start
from qwenvl.generate.visual import IMAGES_AT_ONCE
from qwenvl.model.cache import bucket
from qwenvl.model.packed import pack_
from qwenvl.model.vlm import QwenVL

SLICE = 1.0
"""Work for newcomers goes on without a pause for about so many times the seconds of a step of the running rows."""

LONGEST_SLICE = 0.1
"""Seconds after which a quantum lets others look in between, even where nothing is running."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much an engine holds. What it cannot place waits."""

    rows: int = 16
    """Most answers that are written at a time."""
    cache_tokens: int | None = None
    """Tokens of prompts and answers in the cache, prefixes apart; None: what half of the free memory holds."""
    visual_bytes: int = 256 * 2**20
    """Visual tokens that are kept."""
    prefix_tokens: int | None = None
    """Tokens of prompts that are kept for others that begin alike; None: a quarter of `cache_tokens`, and no more than
    the longest row has."""
    packed: bool = True
    """Pack the model's matrices in place on a CPU (`model.packed`); they are plain again for whoever looks at them."""
    share: float = 1.0
    """Time for running answers, as a multiple of what newcomers have just taken; 0 reads all prompts first."""
    ahead: int = 4
    """Prompts that are read together while nothing runs."""

    def __post_init__(self) -> None:
        for name, least in {"rows": 1, "visual_bytes": 0, "ahead": 1, "share": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} of the engine is {getattr(self, name)}; it must be at least {least}."
                )
        if self.cache_tokens is not None and self.cache_tokens < bucket(1):
            raise ValueError(f"cache_tokens is {self.cache_tokens}; it must be at least {bucket(1)}.")
        if self.prefix_tokens is not None and self.prefix_tokens < 0:
            raise ValueError(f"prefix_tokens is {self.prefix_tokens}; it must be at least 0.")


@dataclass(frozen=True, slots=True)
class Token:
    """One step of one request."""

    request: int
    """What `add` returned; from `stream`, the index of the prompt."""
    id: int
    """-1 where the request ended with an error."""
    logprob: float
    """Log-probability under the model itself, before any warping or grammar."""
    end: End | None = None
    """Set on the last token of the request."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest ids and their log-probabilities, as many as `Settings.top_logprobs` asks for."""
    error: str | None = None
    """Why the request could not be answered, in a sentence."""
    cached: int = 0
    """Tokens of its prompt that did not have to be computed for it."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """The engine's figures; what has no unit is counted since its start."""

    running: int
    """Requests with a place now."""
    waiting: int
    """Requests without one now."""
    cache_tokens: int
    """Tokens reserved now."""
    cache_capacity: int
    cache_held: int
    """Tokens that the slots of all rows have room for; 0 where nothing runs."""
    prefix_bytes: int
    """Memory of the begins of prompts that are kept."""
    visual_bytes: int
    """Memory of the visual tokens that are kept."""
    prefix_queries: int
    """Prompt tokens looked up."""
    prefix_hits: int
    """Those found."""
    visual_queries: int
    """Images looked up."""
    visual_hits: int
    """Those found."""
    preemptions: int
    prompt_tokens: int
    generated_tokens: int


class Engine:
    """Not for several threads: one owns it."""

    def __init__(self, model: QwenVL, config: EngineConfig | None = None) -> None:
        """Raises ValueError for a model in training mode that should be packed."""
        self.model, self.config = model, config or EngineConfig()
        if self.config.packed:
            pack_(model)
        capacity = self.config.cache_tokens or tokens_for(model, self.config.rows)
        prefixes = self.config.prefix_tokens
        if prefixes is None:
            prefixes = min(capacity // 4, longest_row(model))
        self.runner = Runner(
            model, rows=self.config.rows, visual_bytes=self.config.visual_bytes, prefix_tokens=prefixes
        )
        self.scheduler = Scheduler(
            rows=self.config.rows,
            capacity=capacity,
            slot_tokens=bucket,
            share=self.config.share,
            ahead=self.config.ahead,
        )
        self._requests: dict[int, Request] = {}
        self._numbers = count()
        self._work: tuple[See | Read, Iterator[None]] | None = None
        self._spent = 0.0  # seconds of the work at hand
        self._step_seconds = 0.0  # of a decode step, lately
        self._prompt_tokens = self._generated_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return self.scheduler.busy

    def add(
        self,
        prompt: Prompt,
        settings: Settings | None = None,
        grammar: Grammar | None = None,
        *,
        salt: bytes = b"",
    ) -> int:
        """Take a request; requests of different `salt` share nothing. Raises ValueError as `prompts.check`, and for a
        prompt that the cache has no room for."""
        settings = settings or Settings()
        number = next(self._numbers)
        check(prompt, number, self.model)
        settings.sampling.check_vocabulary(self.model.config.llm.vocab_size)
        longest = min(longest_row(self.model), self._longest())
        if len(prompt.ids) >= longest:
            raise ValueError(
                f"prompt {number} has {len(prompt.ids)} tokens, but the cache of this engine holds "
                f"{self.scheduler.capacity}; give it more cache_tokens, or shorten the prompt."
            )
        most = min(settings.max_new_tokens, longest - len(prompt.ids))
        request = Request(
            prompt=prompt.ids,
            settings=settings,
            grammar=grammar,
            prompt_seed=prompt.seed,
            max_remaining=most,
            number=number,
            asked=prompt,
            salt=salt,
        )
        self.runner.prepare(request)
        self._requests[number] = request
        length = len(prompt.ids)
        self.scheduler.add(
            number, prompt=length, most=length + most, key=request.key, salt=salt, cuts=request.cuts
        )
        self._prompt_tokens += length
        return number

    def abort(self, request: int) -> None:
        """Forget a request, in whatever phase it is; of one that is over or unknown there is nothing to forget."""
        if request in self._requests:
            self._forget(request)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One quantum; its tokens, by request. None where it wrote none."""
        while isinstance(quantum := self.scheduler.next(), Start | Preempt):
            request = self._requests[quantum.row]
            if isinstance(quantum, Preempt):
                self.runner.release(request)
                continue
            read = self.runner.start(request)
            self.scheduler.started(request.number, read=read, unseen=self.runner.unseen(request))
            if read == len(request.prompt):
                return self._first([request])
        if quantum is None:
            return []
        if isinstance(quantum, Decode):
            return self._decode(quantum)
        return self._advance(quantum)

    def queue(self) -> list[int]:
        """The requests that wait for a place; whose turn is next stands first."""
        return self.scheduler.queue()

    def stats(self) -> EngineStats:
        """The figures of this moment."""
        visual, prefixes = self.runner.visual, self.runner.prefixes
        return EngineStats(
            running=self.scheduler.running,
            waiting=self.scheduler.waiting,
            cache_tokens=self.scheduler.reserved,
            cache_capacity=self.scheduler.capacity,
            cache_held=self.runner.cache.tokens,
            prefix_bytes=prefixes.held_bytes,
            visual_bytes=visual.held_bytes,
            prefix_queries=prefixes.queries,
            prefix_hits=prefixes.hits,
            visual_queries=visual.queries,
            visual_hits=visual.hits,
            preemptions=self.scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )

    # === Quanta ===

    def _decode(self, quantum: Decode) -> list[Token]:
        began = perf_counter()
        rows, logits = self.runner.decode([self._requests[row] for row in quantum.rows])
        choices = choose(logits, rows).read() if rows else []
        seconds = perf_counter() - began
        self._step_seconds = seconds if not self._step_seconds else 0.9 * self._step_seconds + 0.1 * seconds
        self.scheduler.done(quantum, seconds)
        return self._written(rows, choices)

    def _advance(self, quantum: See | Read) -> list[Token]:
        """Go on with work for newcomers for as long as running rows can wait."""
        if self._work is None or self._work[0] != quantum:
            requests = [self._requests[row] for row in quantum.rows]
            begun = (
                self.runner.see(requests, 1 if self.scheduler.waits else IMAGES_AT_ONCE)
                if isinstance(quantum, See)
                else self.runner.read(requests, quantum.start, quantum.stops)
            )
            self._work, self._spent = (quantum, begun), 0.0
        work, began, slept = self._work[1], perf_counter(), 0.0
        limit = SLICE * self._step_seconds if self.scheduler.waits else LONGEST_SLICE
        over = True
        for _ in work:
            slept, before = perf_counter() - began, slept
            if 2 * slept - before > limit:  # another slice like the last would be too long
                over = False
                break
        seconds = perf_counter() - began
        if not over:
            self.scheduler.slept(seconds)
            return []
        self._work = None
        requests = [self._requests[row] for row in quantum.rows]
        seen = [] if isinstance(quantum, Read) else [r.number for r in requests if not self.runner.unseen(r)]
        self.scheduler.done(quantum, seconds, seen=seen)
        if isinstance(quantum, See):
            return []
        stops = zip(requests, quantum.stops, strict=True)
        return self._first([request for request, stop in stops if stop == len(request.prompt)])

    def _first(self, requests: Sequence[Request]) -> list[Token]:
        """The first tokens of those whose prompts are read; who wrote before goes on with what was written."""
        written: list[Token] = []
        for request in requests:
            if request.written:
                continue
            choices = choose(self.runner.first(request), [request]).read()
            if choices[0][1] == choices[0][1]:  # sound numbers, so that others may begin with them
                self.runner.keep(request)
            written += self._written([request], choices)
        return written

    def _written(
        self,
        rows: Sequence[Request],
        choices: Sequence[tuple[int, float, tuple[tuple[int, float], ...]]],
    ) -> list[Token]:
        tokens = []
        for request, (token, logprob, top) in zip(rows, choices, strict=True):
            if logprob != logprob:
                request.end = "error"
                error = not_numbers(self.model)
                tokens.append(Token(request.number, -1, 0.0, "error", error=error, cached=request.cached))
            else:
                self._generated_tokens += 1
                end = request.write(token)
                tokens.append(Token(request.number, token, logprob, end, top, cached=request.cached))
            if request.end is not None:
                self._forget(request.number)
        return sorted(tokens, key=lambda token: token.request)

    def _forget(self, number: int) -> None:
        self.scheduler.remove(number)
        self.runner.release(self._requests.pop(number))
        if self._work is not None and number in self._work[0].rows:
            self._work = None

    def _longest(self) -> int:
        """Tokens of the longest row that the whole cache holds, a token to come included."""
        capacity = self.scheduler.capacity
        return max(
            n for n in (capacity, capacity // 256 * 256, capacity // 64 * 64) if self.scheduler.fits(n)
        )


def not_numbers(model: QwenVL, whose: str = "") -> str:
    """What is told where the model's probabilities are NaN."""
    return (
        f"the model's probabilities{whose} are not numbers (NaN, computed in {model.llm.embed.weight.dtype}); "
        "float16 overflows on some models, use bfloat16 or float32."
    )


# === Many at once ===


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All tokens of one row, the stop sequence included."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    end: End


def generate(
    model: QwenVL,
    prompts: Sequence[Prompt],
    settings: Settings | None = None,
    grammar: Grammar | None = None,
) -> list[Answer]:
    """The answers, in the order of the prompts. Raises ValueError as `stream` does."""
    tokens: list[list[Token]] = [[] for _ in prompts]
    for token in stream(model, prompts, settings, grammar):
        tokens[token.request].append(token)
    return [
        Answer(
            ids=tuple(t.id for t in row), logprobs=tuple(t.logprob for t in row), end=row[-1].end or "length"
        )
        for row in tokens
    ]


def stream(
    model: QwenVL,
    prompts: Sequence[Prompt],
    settings: Settings | None = None,
    grammar: Grammar | None = None,
) -> Iterator[Token]:
    """Every token as it is made: step by step, within a step by row, as far as memory lets all be written together.

    Prompts are never cut, and the model is left as it is. Raises ValueError before any work for a prompt that is empty,
    that leaves no room below `prompts.longest_row`, or whose images do not match its placeholders; and where the
    model's probabilities are no numbers.
    """
    for number, prompt in enumerate(prompts):
        check(prompt, number, model)
    if not prompts:
        return iter(())
    config = EngineConfig(
        rows=len(prompts), visual_bytes=0, prefix_tokens=0, packed=False, share=0, ahead=len(prompts)
    )
    engine = Engine(model, config)
    for prompt in prompts:
        engine.add(prompt, settings, grammar)
    return _stream(engine)


def _stream(engine: Engine) -> Iterator[Token]:
    while engine.busy:
        for token in engine.step():
            if token.end == "error":
                raise ValueError(not_numbers(engine.model, f" for prompt {token.request}"))
            yield token
