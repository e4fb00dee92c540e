"""The shipped model, and a server over an engine that says what a test wants."""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image as pillow
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
def engine(_shared: tuple[ScriptedEngine, Running]) -> ScriptedEngine:
    engine, _ = _shared
    engine.history.clear()
    engine.seconds, engine.prefill = 0.0, 1
    return engine


@pytest.fixture
def server(_shared: tuple[ScriptedEngine, Running], says: Callable[[str], None]) -> Running:
    """A server whose engine says "It is a cat." unless listed otherwise."""
    says("It is a cat.")
    return _shared[1]


@pytest.fixture
def says(engine: ScriptedEngine, assistant: Assistant) -> Callable[[str], None]:
    """Tell the engine what to say."""

    def say(text: str) -> None:
        ids = assistant.tokenizer.encode(text)
        engine.script = lambda prompt, settings: ids

    return say


@pytest.fixture
def asked(engine: ScriptedEngine, assistant: Assistant) -> Callable[[], str]:
    """The prompt that reached the engine last, as text; an image is <img>, its placeholders left out."""

    def text() -> str:
        spelled = assistant.tokenizer.decode(engine.history[-1].prompt.ids)
        return spelled.replace("<imgpad>", "")

    return text


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """A small image, another one for each seed."""

    def encoded(seed: int = 0, width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
        levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        pillow.fromarray(levels).save(file, kind)
        return file.getvalue()

    return encoded
