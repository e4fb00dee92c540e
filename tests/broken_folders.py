"""Model folders as people have them after a bad day, and the sentence that each deserves at every door."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file

from qwenvl.checkpoint import quantize
from qwenvl.checkpoint.folder import resolve

WEIGHTS, VOCABULARY, CONFIG = "model.safetensors", "qwen.tiktoken", "config.json"


def _whole(folder: Path) -> None:
    shutil.copytree(resolve("tiny"), folder)


def truncated(folder: Path) -> None:
    _whole(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def header_truncated(folder: Path) -> None:
    _whole(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def placeholder(folder: Path) -> None:
    """What git clones where its large files are not installed."""
    _whole(folder)
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")


def shard_missing(folder: Path) -> None:
    _whole(folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    places = {name: second if name.startswith("vision.") else first for name in tensors}
    save_file({name: tensors[name] for name, place in places.items() if place == first}, folder / first)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def weights_missing(folder: Path) -> None:
    _whole(folder)
    (folder / WEIGHTS).unlink()


def larger_vocabulary(folder: Path) -> None:
    """In config.json alone."""
    _whole(folder)
    values = json.loads((folder / CONFIG).read_text())
    values["llm"]["vocab_size"] += 8
    (folder / CONFIG).write_text(json.dumps(values))


def another_vocabulary(folder: Path) -> None:
    _whole(folder)
    lines = (folder / VOCABULARY).read_bytes().splitlines(keepends=True)
    (folder / VOCABULARY).write_bytes(b"".join(lines[:-20]))


def another_qwen(folder: Path) -> None:
    _whole(folder)
    text = {"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": 64, "vocab_size": 829}
    (folder / CONFIG).write_text(json.dumps(text))


WEIGHTS_BROKEN: Mapping[Callable[[Path], None], str] = {
    truncated: r"model\.safetensors is truncated or no weight file .*copy it again",
    header_truncated: r"model\.safetensors is truncated or no weight file .*copy it again",
    placeholder: r"model\.safetensors is truncated or no weight file .*copy it again",
    shard_missing: r"model-00002-of-00002\.safetensors is missing though the index names it; copy all shards",
    weights_missing: r"has no weights; expected model\.safetensors",
    larger_vocabulary: r"llm\.embed\.weight has shape \(829, 192\), expected \(837, 192\)",
}
"""What breaks the weights of a folder, and the sentence."""

OTHER_VOCABULARY = r"the vocabulary numbers <imgpad> 808 but the model expects 828; use the qwen\.tiktoken"

ANOTHER_QWEN = r"model_type 'qwen' without `visual`: a Qwen without eyes; expected Qwen-VL or Qwen-VL-Chat"


def quantised(folder: Path, to: Literal["int8", "int4"]) -> None:
    """The shipped model in `int8` or `int4`."""
    quantize.quantize(resolve("tiny"), folder, quantize.Plan(to=to))
