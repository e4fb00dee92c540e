"""A checkpoint is a folder of facts: `config.json`, `model*.safetensors`, the vocabulary.

Official folders (Qwen-VL, Qwen-VL-Chat: `.safetensors` or `.bin`, sharded or not) are read in place, tensor by tensor,
without remote code and without unpickling objects. Writing goes to a folder beside the target which takes its place
only when complete.
"""

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwenvl.checkpoint import names
from qwenvl.checkpoint.official import from_official, is_official, to_official
from qwenvl.config import ModelConfig, read_json
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime

MODEL_TYPE = "qwenvl"
"""`model_type` in the config.json of our own folders."""

SHARD_BYTES = 4_000_000_000
"""Weights above this are split over several files."""

COMPANIONS = ("qwen.tiktoken", "generation_config.json", "MODEL_CARD.md")
"""Files that travel with the weights when a folder is converted."""


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: its shape is known, its values are read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def laid_out(self, layout: names.Layout, config: ModelConfig) -> "Stored":
        """The same tensor with its rows reordered when read."""
        return self if layout is names.same else Stored(self.shape, lambda: layout(self.read(), config))


def resolve(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: a folder, `tiny` (the shipped model) or a hub id such as `Qwen/Qwen-VL-Chat`."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if str(checkpoint) == "tiny":
        return Path(str(files("qwenvl"))) / "tiny"
    if str(checkpoint).count("/") != 1 or folder.suffix or folder.is_absolute():
        raise ValueError(f"{checkpoint} is no folder; give a model folder, `tiny`, or a hub id like Qwen/Qwen-VL-Chat.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=["*.json", "*.safetensors", "*.bin", "*.tiktoken"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{checkpoint} is no folder and the hub did not give it ({reason}); download it first.") from None


def read_config(folder: Path) -> ModelConfig:
    """The model's shape, from our own or an official config.json."""
    values = read_json(folder / "config.json")
    if is_official(values):
        return from_official(values)
    if values.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{folder}/config.json has model_type {values.get('model_type')!r}; expected {MODEL_TYPE!r}, or 'qwen' with "
            "'visual' as in the official release."
        )
    return ModelConfig.from_dict({key: value for key, value in values.items() if key != "model_type"})


def load(checkpoint: str | Path, runtime: Runtime | None = None) -> QwenVL:
    """Build the model of a folder, a hub id or `tiny`, in evaluation mode.

    Raises ValueError for a missing or truncated file and for missing, unknown or misshapen tensors, by name.
    """
    runtime, folder = runtime or Runtime.detect(), resolve(checkpoint)
    config = read_config(folder)
    with torch.device("meta"):
        model = QwenVL(config)
    stored = our_tensors(folder, config)
    state = {name: each.read().to(runtime.device, runtime.dtype) for name, each in stored.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def save(model: QwenVL, folder: str | Path, *, companions: Path | None = None) -> None:
    """Write the model as a folder that `load` accepts, with the vocabulary and settings of the folder `companions`."""
    stored = {
        name: Stored(tuple(tensor.shape), tensor.detach().cpu) for name, tensor in model.state_dict().items()
    }
    with new_folder(Path(folder)) as unfinished:
        write_config(unfinished, {"model_type": MODEL_TYPE, **model.config.to_dict()})
        write_tensors(unfinished, stored)
        copy_companions(companions, unfinished)


def convert(source: str | Path, target: str | Path, *, to: str = MODEL_TYPE) -> None:
    """Rewrite a checkpoint folder as `qwenvl` or `official`, tensor by tensor: bits and precisions stay as they are."""
    folder = resolve(source)
    config = read_config(folder)
    stored = our_tensors(folder, config)
    if to == MODEL_TYPE:
        values: dict[str, Any] = {"model_type": MODEL_TYPE, **config.to_dict()}
    elif to == "official":
        precision = str(stored["llm.embed.weight"].read().dtype).removeprefix("torch.")
        values = to_official(config, precision)
        official = {ours: names.foreign(ours, names.OFFICIAL) for ours in stored}
        stored = {
            name: stored[ours].laid_out(layout, config)
            for ours, entry in official.items()
            if entry
            for name, layout in [entry]
        }
    else:
        raise ValueError(f"cannot convert to {to!r}; expected 'official' or {MODEL_TYPE!r}.")
    with new_folder(Path(target)) as unfinished:
        write_config(unfinished, values)
        write_tensors(unfinished, stored)
        copy_companions(folder, unfinished)


def our_tensors(folder: Path, config: ModelConfig) -> dict[str, Stored]:
    """Every tensor of the model under our names and in our layout, checked by name and shape, not yet read."""
    stored = stored_tensors(folder)
    if is_official(read_json(folder / "config.json")):
        stored = renamed(stored, names.OFFICIAL, config)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in QwenVL(config).state_dict().items()}
    names.check_names(expected, {name: each.shape for name, each in stored.items()}, str(folder))
    return stored


def renamed(
    stored: Mapping[str, Stored], table: Mapping[str, names.Map], config: ModelConfig
) -> dict[str, Stored]:
    """Foreign tensors under our names and in our layout; names that the table does not know stay as they are."""
    entries = {name: names.ours(name, table) or (name, names.same) for name in stored}
    return {ours: stored[name].laid_out(layout, config) for name, (ours, layout) in entries.items()}


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder's weight files: `.safetensors` first, else `.bin` (read as weights only)."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        if index.exists():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            return {name: each for shard in shards for name, each in _stored_in(folder / shard)}
        if (folder / f"{stem}{suffix}").exists():
            return dict(_stored_in(folder / f"{stem}{suffix}"))
    raise ValueError(f"{folder} has no weights; expected model.safetensors or pytorch_model.bin, whole or sharded.")


def _stored_in(file: Path) -> Iterator[tuple[str, Stored]]:
    if not file.exists():
        raise ValueError(f"{file} is missing though the index names it; copy all shards of the checkpoint.")
    try:
        if file.suffix == ".safetensors":
            opened = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                shape = tuple(opened.get_slice(name).get_shape())
                yield name, Stored(shape, lambda name=name: opened.get_tensor(name))  # type: ignore[misc]
        else:
            for name, tensor in torch.load(file, map_location="cpu", weights_only=True, mmap=True).items():
                yield name, Stored(tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is truncated or no weight file ({reason}); copy it again from its source.") from None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends well and vanishes when it does not.

    Raises ValueError when `target` exists and is no checkpoint folder, or its parent cannot be written.
    """
    if target.exists() and not (target.is_dir() and ((target / "config.json").exists() or not any(target.iterdir()))):
        raise ValueError(f"{target} exists and is no model folder; give a new folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
    except OSError as error:
        raise ValueError(f"cannot write {target} ({error.strerror}); give a folder you may write to.") from None
    try:
        yield unfinished
        unfinished.chmod(0o755)
        replaced = unfinished.with_name(unfinished.name + "-replaced")
        if target.exists():
            target.rename(replaced)
        unfinished.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"could not write {target} ({error.strerror or error}); nothing was left there.") from None
    except SafetensorError as error:
        raise ValueError(f"could not write {target} ({error}); nothing was left there.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write config.json."""
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_tensors(folder: Path, stored: Mapping[str, Stored]) -> None:
    """Write the weights, one shard in memory at a time, with an index when they need more than one file."""
    shards: list[list[str]] = [[]]
    total = filled = 0
    for name, each in stored.items():
        tensor = each.read()
        size = tensor.numel() * tensor.element_size()
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled, total = filled + size, total + size
    files = [
        "model.safetensors" if len(shards) == 1 else f"model-{n:05}-of-{len(shards):05}.safetensors"
        for n in range(1, len(shards) + 1)
    ]
    for file, members in zip(files, shards, strict=True):
        save_file({name: stored[name].read().contiguous() for name in members}, folder / file, {"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, members in zip(files, shards, strict=True) for name in members},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_companions(source: Path | None, target: Path) -> None:
    """Copy the vocabulary and settings that travel with the weights."""
    for name in COMPANIONS:
        if source and (source / name).exists():
            shutil.copyfile(source / name, target / name)
