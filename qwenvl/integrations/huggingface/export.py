"""A checkpoint as a folder for the hub: every Auto class loads it, and a card says what it is."""

import json
from pathlib import Path

from qwenvl.checkpoint import folder as folders
from qwenvl.checkpoint.converting import convert, is_official_tokenizer
from qwenvl.checkpoint.folder import MODEL_TYPE, REMEMBERED
from qwenvl.checkpoint.hub import CARD, card, hub_id, preprocessing
from qwenvl.checkpoint.layers import named
from qwenvl.checkpoint.weights import stored_tensors
from qwenvl.integrations.huggingface.config import ARCHITECTURE, QwenVLConfig
from qwenvl.integrations.huggingface.processor import QwenVLProcessor
from qwenvl.options import PromptFormat
from qwenvl.parsing import read_json


def export(source: str | Path, target: str | Path) -> None:
    """Rewrite a checkpoint bit for bit in our format, with all that the hub and the Auto classes look for."""
    place = folders.resolve(source)
    folders.vocabulary(place)  # the Auto classes need one
    PromptFormat.read(place)
    origin, title = hub_id(source), Path(target).resolve().name
    convert(source, target, finish=lambda old, new: _finish(old, new, title, origin))


def _finish(old: Path, new: Path, title: str, origin: str | None) -> None:
    settings = new / "tokenizer_config.json"
    if settings.exists() and is_official_tokenizer(read_json(settings)):
        settings.rename(new / REMEMBERED[settings.name])
    processor = QwenVLProcessor.from_pretrained(new)
    processor.save_pretrained(new)
    shape = folders.read_config(new)
    dtype = named(stored_tensors(new)["llm.embed.weight"].dtype)
    beside = {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], "dtype": dtype}
    folders.write_config(new, {**beside, **shape.to_dict()})
    config = QwenVLConfig.of(shape)
    generation = new / "generation_config.json"
    said = read_json(generation)
    ends = {"eos_token_id": config.ends(), "pad_token_id": config.endoftext}
    if missing := {key: value for key, value in ends.items() if key not in said}:
        _write(generation, {**said, **missing})
    _write(new / "preprocessor_config.json", preprocessing(shape, processor.ground, type(processor).__name__))
    text = card(new, title, shape, dtype, origin)
    (new / CARD).write_bytes(text.encode("utf-8", "surrogateescape"))
    (new / "MODEL_CARD.md").unlink(missing_ok=True)


def _write(file: Path, values: object) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
