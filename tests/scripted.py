"""Fixtures of tests/serve and tests/attacks: the shipped model, and a server over an engine that follows a script."""

from collections.abc import Iterator

import pytest
from serving import Running, ScriptedEngine, api_over, serving

from qwenvl.chat import Assistant


@pytest.fixture(scope="session")
def assistant() -> Assistant:
    return Assistant.load("tiny", device="cpu")


@pytest.fixture(scope="session")
def shared(assistant: Assistant) -> Iterator[tuple[ScriptedEngine, Running]]:
    """One for all tests, which take `engine` and `server`."""
    engine = ScriptedEngine(lambda prompt, settings: [])
    with serving(api_over(engine, assistant)) as running:
        yield engine, running


@pytest.fixture
def engine(shared: tuple[ScriptedEngine, Running], assistant: Assistant) -> ScriptedEngine:
    """Says "It is a cat." unless told otherwise, and remembers what reached it."""
    engine, _ = shared
    engine.history.clear()
    ids = assistant.tokenizer.encode("It is a cat.")
    engine.seconds, engine.prefill, engine.script = 0.0, 1, lambda prompt, settings: ids
    return engine


@pytest.fixture
def server(engine: ScriptedEngine, shared: tuple[ScriptedEngine, Running]) -> Running:
    return shared[1]


FIXTURES = (assistant, shared, engine, server)
"""What the conftest.py of such tests makes its own."""
