"""Qwen-VL, clean-room: a model that sees, reads, answers and points (arXiv 2308.12966).

    assistant = qwenvl.Assistant.load("tiny")
    reply = assistant.ask("photo.jpg", "Where is the red circle?")
    reply.text, reply.boxes

Importing this takes milliseconds and loads no torch: each public name is fetched when it is first used (PEP 562).
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qwenvl.chat import Assistant as Assistant
    from qwenvl.chat import Request as Request
    from qwenvl.checkpoint.folder import load as load
    from qwenvl.checkpoint.folder import save as save
    from qwenvl.config import ModelConfig as ModelConfig
    from qwenvl.drawing import draw_boxes as draw_boxes
    from qwenvl.generate.sampling import SamplingConfig as SamplingConfig
    from qwenvl.markup import Box as Box
    from qwenvl.markup import Image as Image
    from qwenvl.markup import Quad as Quad
    from qwenvl.markup import Ref as Ref
    from qwenvl.markup import Text as Text
    from qwenvl.markup import Turn as Turn
    from qwenvl.model.vlm import QwenVL as QwenVL
    from qwenvl.options import Options as Options
    from qwenvl.options import PromptFormat as PromptFormat
    from qwenvl.replies import Reply as Reply
    from qwenvl.replies import TokenLogprob as TokenLogprob
    from qwenvl.runtime import Runtime as Runtime
    from qwenvl.tokenizer import Tokenizer as Tokenizer

    from . import presets as presets

_HOME = {
    "load": "qwenvl.checkpoint.folder",
    "save": "qwenvl.checkpoint.folder",
    "Assistant": "qwenvl.chat",
    "Reply": "qwenvl.replies",
    "TokenLogprob": "qwenvl.replies",
    "Request": "qwenvl.chat",
    "Options": "qwenvl.options",
    "PromptFormat": "qwenvl.options",
    "SamplingConfig": "qwenvl.generate.sampling",
    "Runtime": "qwenvl.runtime",
    "QwenVL": "qwenvl.model.vlm",
    "ModelConfig": "qwenvl.config",
    "presets": "qwenvl",
    "Tokenizer": "qwenvl.tokenizer",
    "Image": "qwenvl.markup",
    "Text": "qwenvl.markup",
    "Turn": "qwenvl.markup",
    "Ref": "qwenvl.markup",
    "Box": "qwenvl.markup",
    "Quad": "qwenvl.markup",
    "draw_boxes": "qwenvl.drawing",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    """The public name, imported from its home; remembered, so that this runs once per name."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'qwenvl' has no attribute {name!r}; public names: {', '.join(_HOME)}")
    from importlib import import_module

    found = import_module(f"qwenvl.{name}") if home == "qwenvl" else getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
