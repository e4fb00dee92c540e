"""Requests of one caller in an engine that several may share: their tokens in order, and nothing left behind."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from qwenvl.generate.engine import Engine, Settings, Token
from qwenvl.generate.grammar import Grammar
from qwenvl.generate.prompts import Prompt


class Inboxes:
    """An engine, and who reads which of its requests. For one thread, as the engine is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inboxes: dict[int, deque[Token]] = {}

    def run(self, prompts: Sequence[Prompt], settings: Settings, grammar: Grammar | None = None) -> "Running":
        """Take these prompts. Raises ValueError as `Engine.add`; then none of them is taken."""
        inbox: deque[Token] = deque()
        numbers: list[int] = []
        running = Running(self, inbox, numbers)
        for prompt in prompts:  # where one is refused, what was taken goes with `running`
            numbers.append(self.engine.add(prompt, settings, grammar))
            self._inboxes[numbers[-1]] = inbox
        return running

    def step(self) -> None:
        """One quantum; every token goes to who waits for it."""
        for token in self.engine.step():
            if (inbox := self._inboxes.get(token.request)) is not None:
                inbox.append(token)

    def leave(self, number: int) -> None:
        """Forget a request, whether it is over or not."""
        if self._inboxes.pop(number, None) is not None:
            self.engine.abort(number)


class Running(Iterator[Token]):
    """The tokens of some requests as they are written, numbered from 0; whoever lets go of it aborts them."""

    def __init__(self, inboxes: Inboxes, inbox: deque[Token], numbers: list[int]) -> None:
        self._inboxes, self._inbox, self._numbers = inboxes, inbox, numbers
        self._over = 0

    def __next__(self) -> Token:
        """Raises ValueError where a request ends with an error."""
        while not self._inbox:
            if self._over == len(self._numbers):
                raise StopIteration
            self._inboxes.step()
        token = self._inbox.popleft()
        if token.end is not None:
            self._over += 1
            self._inboxes.leave(token.request)
        if token.end == "error":
            self.close()
            raise ValueError(token.error)
        return replace(token, request=self._numbers.index(token.request))

    def close(self) -> None:
        """Abort what is not over."""
        for number in self._numbers:
            self._inboxes.leave(number)
        self._over = len(self._numbers)
        self._inbox.clear()

    def __del__(self) -> None:
        self.close()
