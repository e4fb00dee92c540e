"""What the scripted engine says, what reached it, and images to show it."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import scripted
from PIL import Image as pillow
from serving import ScriptedEngine

from qwenvl.chat import Assistant

assistant, shared, engine, server = scripted.FIXTURES


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
