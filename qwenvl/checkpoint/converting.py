"""The same weights in another folder format, bit for bit; what was written is read back before it is shown."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenvl.checkpoint import folder as folders
from qwenvl.checkpoint import names
from qwenvl.checkpoint.folder import MODEL_TYPE, REMEMBERED
from qwenvl.checkpoint.layers import SETTING, named
from qwenvl.checkpoint.official import TOKENIZER, from_official, is_official, to_official
from qwenvl.checkpoint.weights import Stored
from qwenvl.checkpoint.writing import write_tensors
from qwenvl.config import ModelConfig
from qwenvl.parsing import read_json
from qwenvl.tokenizer import VOCABULARY_FILE

TRAVELLING: Mapping[str, tuple[str, ...]] = {
    MODEL_TYPE: (*folders.SIDECARS, *folders.CARDS),
    "official": (VOCABULARY_FILE, "generation_config.json", *folders.LICENCES, *folders.CARDS),
}
"""Format -> the files that it takes over as they are."""


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = MODEL_TYPE,
    finish: Callable[[Path, Path], object] | None = None,
) -> None:
    """Rewrite a checkpoint folder as `qwenvl` or `official`, tensor by tensor: bits and precisions stay as they are.

    `finish(source folder, new folder)` may add files before the new folder is shown. Raises ValueError for what cannot
    be read, lies beside another vocabulary, has no such form, or reads back otherwise than it was written; nothing is
    left then.
    """
    if to not in TRAVELLING:
        raise ValueError(f"cannot convert to {to!r}; expected 'official' or {MODEL_TYPE!r}.")
    folder = folders.resolve(source)
    model, stored = folders.our_tensors(folder)
    config, written = model.config, stored
    folders.require_own_vocabulary(folder)
    values: dict[str, Any] = {"model_type": MODEL_TYPE, **config.to_dict()}
    if to == "official":
        values = to_official(config, named(stored["llm.embed.weight"].dtype))
        written = official_tensors(stored, config)
    with folders.new_folder(Path(target)) as unfinished:
        write_tensors(unfinished, written)
        folders.copy_sidecars(folder, unfinished, names=TRAVELLING[to])
        _write_settings(folder, unfinished, values, config)
        require_same(stored, config, unfinished, Path(target))
        if finish is not None:
            finish(folder, unfinished)


def official_tensors(stored: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """Our tensors under the official names and in the official layout."""
    official: dict[str, Stored] = {}
    for ours, each in stored.items():
        entry = names.foreign(ours, names.OFFICIAL)
        assert entry is not None, ours
        official[entry[0]] = each.laid_out(entry[1], config)
    return official


def require_same(stored: Mapping[str, Stored], config: ModelConfig, written: Path, target: Path) -> None:
    """Raises ValueError unless the folder `written` reads back as this model; two tensors are in memory at a time.

    `target` is what the message calls it.
    """
    model, again = folders.our_tensors(written)
    differing = next(
        (name for name, each in stored.items() if not same_bits(each.read(), again[name].read())), None
    )
    if model.config != config:
        differing = "config.json"
    if differing is not None:
        raise ValueError(
            f"{target} was written and reads back otherwise: {differing} differs, so nothing was left of it. Try "
            "another disk."
        )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape, one precision and the same bytes, NaN and -0 included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    bytes_of = (each.contiguous().view(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(*bytes_of)


def _write_settings(folder: Path, unfinished: Path, values: Mapping[str, Any], config: ModelConfig) -> None:
    """config.json and, officially, tokenizer_config.json; official ones to the letter while they describe the model."""

    def same_model(found: Any) -> bool:
        return is_official(found) and SETTING not in found and from_official(found) == config

    official = _remembered(folder, "config.json", same_model)
    if values["model_type"] == MODEL_TYPE:
        folders.write_config(unfinished, values)
        _copy_or_write(official, unfinished / REMEMBERED["config.json"], None)
        return
    _copy_or_write(official, unfinished / "config.json", values)
    _copy_or_write(
        _remembered(folder, "tokenizer_config.json", is_official_tokenizer),
        unfinished / "tokenizer_config.json",
        TOKENIZER,
    )


def is_official_tokenizer(found: Any) -> bool:
    """Whether these values of a tokenizer_config.json are those of an official folder."""
    return isinstance(found, Mapping) and found.get("tokenizer_class") == TOKENIZER["tokenizer_class"]


def _remembered(folder: Path, name: str, is_it: Callable[[Any], bool]) -> Path | None:
    for place in (folder / name, folder / REMEMBERED[name]):
        if place.exists() and is_it(read_json(place, limit=folders.MAX_SETTINGS)):
            return place
    return None


def _copy_or_write(source: Path | None, place: Path, values: Mapping[str, Any] | None) -> None:
    place.unlink(missing_ok=True)
    if source is not None:
        shutil.copyfile(source, place)
    elif values is not None:
        place.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
