"""What a folder for the hub holds beside its weights: the card in README.md, and how images are prepared.

The front matter of a card is YAML. It is never parsed here: what a checkpoint's own card says is kept to the letter,
key by key, and what it does not say is added.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenvl.checkpoint import folder as folders
from qwenvl.config import ModelConfig
from qwenvl.files import read_limited
from qwenvl.images import MEAN, STD
from qwenvl.terminal import printable

CARD = "README.md"

MAX_CARD = 4 << 20
"""Bytes of a card."""

ALWAYS: Mapping[str, str] = {"library_name": "qwenvl", "pipeline_tag": "image-text-to-text"}
"""What is true of every folder that is written here, whatever the card said of the one it was made from."""

_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?\n)??---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_KEY = re.compile(r"^(?P<key>[A-Za-z_][\w.-]*)[ \t]*:", re.MULTILINE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BEGIN, _END = "<!-- qwenvl: how this folder is read -->", "<!-- qwenvl -->"
_SECTION = re.compile(f"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)


def preprocessing(config: ModelConfig, ground: Sequence[int], processor: str | None = None) -> dict[str, Any]:
    """The values of preprocessor_config.json: what `qwenvl.images.preprocess` does, in words that others use.

    For what stands behind transparency others have none: there it is ours.
    """
    side = config.vision.image_size
    return {
        **({"processor_class": processor} if processor else {}),
        "do_convert_rgb": True,
        **({"image_ground": list(ground)} if ground else {}),
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def hub_id(source: str | Path) -> str | None:
    """The id of a checkpoint that comes from the hub; None for a folder or a shipped model: no path enters a card."""
    text = str(source)
    return text if _HUB_ID.fullmatch(text) and not Path(source).is_dir() else None


def card(folder: Path, title: str, config: ModelConfig, dtype: str, origin: str | None = None) -> str:
    """The text of README.md for the model of a folder: of the card that lies there, else made of what is known.

    `dtype` is the precision of the weights, `origin` a hub id. Bytes that are no UTF-8 come back as they are.
    """
    written = next((folder / name for name in (CARD, "MODEL_CARD.md") if (folder / name).exists()), None)
    said = read_limited(written, MAX_CARD).decode("utf-8", "surrogateescape") if written else ""
    matter, body = _parted(said)
    known = {**matter, **{key: f"{key}: {value}\n" for key, value in ALWAYS.items()}}
    if "license" not in known:
        known |= _licence(folder)
    if "base_model" not in known and origin:
        known["base_model"] = f"base_model: {origin}\n"
    if not body.strip():
        body = f"# {printable(title)}\n\n{_unsaid(known)}"
    section = f"{_BEGIN}\n{_how(config, dtype)}{_END}\n"
    return f"---\n{''.join(known.values())}---\n{_SECTION.sub('', body).rstrip()}\n\n{section}"


def _parted(text: str) -> tuple[dict[str, str], str]:
    """The front matter by key, each with the lines that belong to it, and what follows."""
    found = _MATTER.match(text)
    if found is None:
        return {}, text
    lines = (found[1] or "").replace("\r\n", "\n")
    starts = list(_KEY.finditer(lines))
    stops = [each.start() for each in starts[1:]] + [len(lines)] * bool(starts)
    blocks = {each["key"]: lines[each.start() : stop] for each, stop in zip(starts, stops, strict=True)}
    return blocks, text[found.end() :]


def _licence(folder: Path) -> dict[str, str]:
    """`other` with the file where one lies beside the weights, else `unknown`, which the hub knows as a licence."""
    patterns = [each for each in folders.LICENCES if each.startswith("LICEN")]
    files = sorted(each.name for pattern in patterns for each in folder.glob(pattern) if each.is_file())
    if not files or not re.fullmatch(r"[\w.-]+", files[0]):
        return {"license": "license: unknown\n"}
    return {
        "license": "license: other\n",
        "license_name": "license_name: as-in-the-file\n",
        "license_link": f"license_link: {files[0]}\n",
    }


def _unsaid(known: Mapping[str, str]) -> str:
    """A sentence about what nobody said."""
    wanted = {"base_model": "where the weights come from", "license": "under which licence they are",
              "language": "which languages they know"}  # fmt: skip
    missing = [
        text for key, text in wanted.items() if known.get(key, "license: unknown\n") == "license: unknown\n"
    ]
    if not missing:
        return "A Qwen-VL.\n"
    listed = " and ".join([", ".join(missing[:-1]), missing[-1]] if len(missing) > 1 else missing)
    return f"A Qwen-VL. The folder that it was made from does not say {listed}: whoever publishes it fills that in.\n"


def _how(config: ModelConfig, dtype: str) -> str:
    side, llm = config.vision.image_size, config.llm
    return f"""## How this folder is read

Weights in {dtype}, {llm.vocab_size:,} words, {llm.sequence_length:,} tokens at a time in training; an image is
{side} x {side} pixels and {config.adapter.queries} tokens. Boxes are integers in [0, 1000).

```console
$ pip install "qwenvl[hf]"
$ qwenvl ask FOLDER photo.jpg "What is this?"
$ qwenvl serve FOLDER
```

```python
import qwenvl.integrations.transformers  # makes the model known to the Auto classes
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
```
"""
