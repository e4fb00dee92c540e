"""A server on a port of this machine whose engine says what a test wants, and remembers what reached it."""

import socket
from collections.abc import Callable, Iterator

import pytest
from serving import Running, ScriptedEngine, api_over, serving

from qwenvl.chat import Assistant


@pytest.fixture(scope="session")
def assistant() -> Assistant:
    return Assistant.load("tiny", device="cpu")


@pytest.fixture(scope="session")
def _shared(assistant: Assistant) -> Iterator[tuple[ScriptedEngine, Running]]:
    engine = ScriptedEngine(lambda prompt, settings: [])
    with serving(api_over(engine, assistant)) as running:
        yield engine, running


@pytest.fixture
def engine(_shared: tuple[ScriptedEngine, Running], assistant: Assistant) -> ScriptedEngine:
    """Says "It is a cat." unless told otherwise."""
    engine, _ = _shared
    engine.history.clear()
    ids = assistant.tokenizer.encode("It is a cat.")
    engine.seconds, engine.prefill, engine.script = 0.0, 1, lambda prompt, settings: ids
    return engine


@pytest.fixture
def server(engine: ScriptedEngine, _shared: tuple[ScriptedEngine, Running]) -> Running:
    return _shared[1]


@pytest.fixture
def raw(server: Running) -> Callable[..., bytes]:
    """Bytes as they are to the server, and what it answers until it closes, or `seconds` have passed."""

    def send(data: bytes, *, seconds: float = 5.0, to: Running = server) -> bytes:
        with socket.create_connection((to.host, to.port), timeout=seconds) as connection:
            connection.sendall(data)
            answer = b""
            try:
                while more := connection.recv(65536):
                    answer += more
            except (TimeoutError, ConnectionResetError):
                pass
            return answer

    return send
