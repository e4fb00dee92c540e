"""The model behind the server, read in the thread that will own it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from qwenvl.chat import Assistant
from qwenvl.generate import engine
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime, ask_for_huge_pages
from qwenvl.serve.app import Loaded
from qwenvl.serve.media import Fetches
from qwenvl.serve.requests import Preparer
from qwenvl.serve.start import Start


def load(start: Start, fetcher: Fetches | None) -> Loaded:
    """Raises ValueError for what is no model, OSError for what cannot be read."""
    ask_for_huge_pages()
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    runtime = Runtime.detect(device=start.device, dtype=start.dtype)
    assistant = Assistant.load(start.checkpoint, runtime)
    preparer = Preparer(
        assistant=assistant,
        limits=start.limits,
        fetcher=fetcher,
        raw_orientation=start.raw_orientation,
        context=start.context,
    )
    return Loaded(engine=Streams(assistant.model, start.rows), preparer=preparer)


# === Until the engine takes rows while it runs, each row is a stream of its own ===


@dataclass(frozen=True, slots=True)
class Written:
    """A token of a row."""

    request: int
    id: int
    logprob: float
    end: str | None
    error: str | None = None
    cached: int = 0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the metrics read."""

    running: int
    waiting: int
    cache_tokens: int = 0
    cache_capacity: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    visual_queries: int = 0
    visual_hits: int = 0
    preemptions: int = 0


class Streams:
    """Rows one beside the other, without a common batch."""

    def __init__(self, model: QwenVL, rows: int) -> None:
        self._model, self._rows = model, rows
        self._waiting: dict[int, Iterator[Any]] = {}
        self._running: dict[int, Iterator[Any]] = {}
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether a row is waiting or running."""
        return bool(self._waiting or self._running)

    def add(self, prompt: Any, settings: Any = None, grammar: Any = None, *, salt: bytes = b"") -> int:
        """Take a row and number it. Raises ValueError as `engine.stream`."""
        self._count += 1
        self._waiting[self._count] = engine.stream(self._model, [prompt], settings, grammar)
        return self._count

    def abort(self, request: int) -> None:
        """Forget a row."""
        self._waiting.pop(request, None)
        self._running.pop(request, None)

    def step(self) -> list[Written]:
        """A token of every row."""
        while self._waiting and len(self._running) < self._rows:
            number = next(iter(self._waiting))
            self._running[number] = self._waiting.pop(number)
        written = [self._write(number, tokens) for number, tokens in self._running.items()]
        for token in written:
            if token.end is not None:
                del self._running[token.request]
        return written

    def stats(self) -> Figures:
        """How many rows there are."""
        return Figures(running=len(self._running), waiting=len(self._waiting))

    def _write(self, number: int, tokens: Iterator[Any]) -> Written:
        try:
            token = next(tokens)
        except ValueError as error:
            return Written(number, -1, 0.0, "error", str(error))
        return Written(number, token.id, token.logprob, token.end, top=token.top)
