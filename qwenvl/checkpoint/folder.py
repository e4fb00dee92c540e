"""A checkpoint is a folder of facts: `config.json`, `model*.safetensors`, the vocabulary.

Official folders (Qwen-VL, Qwen-VL-Chat: `.safetensors` or `.bin`, sharded or not) are read in place, tensor by tensor,
without remote code and without unpickling objects. Writing goes to a folder beside the target which takes its place
only when complete.
"""

import contextlib
import errno
import fnmatch
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qwenvl.checkpoint import names
from qwenvl.checkpoint.layers import SETTING, whole_weights
from qwenvl.checkpoint.official import from_official, is_official
from qwenvl.checkpoint.placing import plain_tensor, put_quantized, require_memory
from qwenvl.checkpoint.weights import Stored, stored_tensors
from qwenvl.checkpoint.writing import write_tensors
from qwenvl.config import ModelConfig
from qwenvl.files import inside, locked, swapped
from qwenvl.model.vlm import QwenVL, without_values
from qwenvl.parsing import read_json
from qwenvl.runtime import Runtime, tight_memory
from qwenvl.tokenizer import VOCABULARY_FILE, Tokenizer

MODEL_TYPE = "qwenvl"
"""`model_type` in the config.json of our own folders."""

BESIDE = (
    *(
        "model_type",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "_name_or_path",
    ),
    *(
        "use_cache",
        "initializer_range",
        "tie_word_embeddings",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        SETTING,
    ),
)
"""Keys that the ecosystem writes beside the shape; they change nothing here."""

HUB_FILES = ("*.json", "*.safetensors", "*.bin", "*.tiktoken")
"""Patterns of what a hub id's model is made of."""

SHIPPED = ("tiny", "drawings")
"""Names of models whose folders stand in the package, where they are shipped."""

MAX_SETTINGS = 16 << 20
"""Bytes of a config.json."""

REMEMBERED = {
    "config.json": "official_config.json",
    "tokenizer_config.json": "official_tokenizer_config.json",
}
"""Official settings -> where ours keep them, so that they can be written back as they were."""

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "ATTRIBUTION*")
"""Patterns of names: what must go wherever the weights go."""

SIDECARS = (
    VOCABULARY_FILE,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    *REMEMBERED.values(),
    *LICENCES,
)
"""Files that travel with the weights, whatever is done with them: names, and patterns of names."""

CARDS = ("README.md", "MODEL_CARD.md", "curves.svg")
"""What is said of a model; it travels as long as the weights are the same."""

_WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|vision\.onnx(\.data)?"
_OWN_FILE = re.compile(
    "|".join([*map(fnmatch.translate, (*SIDECARS, *CARDS)), r"config\.json", f"({_WEIGHTS})\\Z"])
)


_UNFINISHED = re.compile(r"\.(?P<target>.+)-unfinished-[a-z0-9_]{8}(?P<replaced>-replaced)?", re.DOTALL)
"""Folders that are being filled."""


def resolve(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: a folder, the name of a shipped model, or a hub id such as `Qwen/Qwen-VL-Chat`.

    A folder of that name comes before a shipped model where it holds a config.json: `drawings` is also what drawings
    are fetched into.
    """
    folder = Path(checkpoint)
    if is_shipped(str(checkpoint)) and not (folder / "config.json").exists():
        return _in_package(str(checkpoint))
    if folder.is_dir():
        _require_no_run(folder)
        return folder
    if str(checkpoint) in SHIPPED:
        raise ValueError(
            f"the model {checkpoint} does not come with this version; train it by recipes/{checkpoint}, and give its "
            "folder."
        )
    if str(checkpoint).count("/") != 1 or folder.suffix or folder.is_absolute():
        raise ValueError(
            f"{checkpoint} is no folder; give a model folder, `tiny`, or a hub id like Qwen/Qwen-VL-Chat."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=[*HUB_FILES, *CARDS, *LICENCES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{checkpoint} is no folder and the hub did not give it ({reason}); download it first."
        ) from None


def _require_no_run(folder: Path) -> None:
    """Raises ValueError for the folder of a run, whose models lie in folders of their own."""
    if any((folder / name).exists() for name in ("config.json", VOCABULARY_FILE)):
        return
    found = [each.parent for each in (*folder.glob("model/config.json"), *folder.glob("*/model/config.json"))]
    if models := sorted(map(str, found)):
        raise ValueError(
            f"{folder} is the folder of a run and no model; give a model of it: {', '.join(models)}."
        )


def is_shipped(name: str) -> bool:
    """Whether this is the name of a model that comes with this version."""
    return name in SHIPPED and _in_package(name).is_dir()


def _in_package(name: str) -> Path:
    return Path(str(files("qwenvl"))) / name


def vocabulary(folder: Path) -> Tokenizer:
    """The vocabulary beside a model. Raises ValueError where there is no model or no vocabulary, or another's."""
    imgpad = read_config(folder).imgpad_id
    tokenizer = Tokenizer.load(folder)
    tokenizer.require_own(imgpad)
    return tokenizer


def require_own_vocabulary(folder: Path) -> None:
    """Raises ValueError where the vocabulary beside a model is another's; there may be none."""
    if (folder / VOCABULARY_FILE).exists():
        vocabulary(folder)


def read_config(folder: Path) -> ModelConfig:
    """The model's shape, from our own or an official config.json."""
    values = settings(folder)
    if not isinstance(values, dict):
        raise ValueError(
            f"{folder}/config.json holds {type(values).__name__}; expected an object with the model's shape."
        )
    if is_official(values) or values.get("model_type") == MODEL_TYPE:
        ours = {key: value for key, value in values.items() if key not in BESIDE}
        try:
            return from_official(values) if is_official(values) else ModelConfig.from_whole_dict(ours)
        except ValueError as error:
            raise ValueError(f"{folder}/config.json cannot be read: {error}") from None
    raise ValueError(
        f"{folder}/config.json has model_type {values.get('model_type')!r}; expected {MODEL_TYPE!r}, or 'qwen' "
        "with 'visual' as in the official release. Other models of the family are not read here."
    )


def load(checkpoint: str | Path, runtime: Runtime | None = None, *, dequantise: bool = False) -> QwenVL:
    """Build the model of a folder, a hub id or `tiny`, in evaluation mode; tensor by tensor.

    Quantised layers stay integers, unless `dequantise`: then they are the plain weights that the integers mean.
    Raises ValueError for a missing or truncated file, for missing, unknown or misshapen tensors, by name, and for a
    model that the memory does not hold.
    """
    runtime, folder = runtime or Runtime.detect(), resolve(checkpoint)
    model, stored = our_tensors(folder)
    kept = {name: each.integers for name, each in stored.items() if each.integers and not dequantise}
    require_memory(stored, kept, runtime, folder)
    plain = {name: each for name, each in stored.items() if name not in kept}
    with tight_memory():
        state = {name: plain_tensor(name, each, kept, runtime) for name, each in plain.items()}
        model.load_state_dict(
            state, assign=True, strict=False
        )  # the names have been checked; the integers follow
        # the largest first: it is there twice while it is packed
        for name, read in sorted(kept.items(), key=lambda each: -stored[each[0]].packed):
            put_quantized(model, name.removesuffix(".weight"), read(), runtime)
    return model.eval()


def quantized_parts(checkpoint: str | Path) -> frozenset[str]:
    """The parts of a checkpoint with quantised layers, of `vision`, `adapter`, `llm`; no value is read."""
    _, stored = our_tensors(resolve(checkpoint))
    return frozenset(name.partition(".")[0] for name, each in stored.items() if each.integers)


def save(model: QwenVL, folder: str | Path, *, sidecars: Path | None = None) -> None:
    """Write the model as a folder that `load` accepts, with the vocabulary and settings of the folder `sidecars`."""
    stored = {
        name: Stored(tuple(tensor.shape), tensor.dtype, tensor.detach().cpu)
        for name, tensor in model.state_dict().items()
    }
    with new_folder(Path(folder)) as unfinished:
        write_config(unfinished, {"model_type": MODEL_TYPE, **model.config.to_dict()})
        write_tensors(unfinished, stored)
        copy_sidecars(sidecars, unfinished)


def our_tensors(folder: Path) -> tuple[QwenVL, dict[str, Stored]]:
    """The model of a folder without values (on the meta device), and its tensors under our names and in our layout.

    They are checked by name and shape and not yet read. What config.json says is held against the headers of the
    weights before anything is built: a shape that they cannot fill would take hours or all memory.
    """
    config, stored = read_config(folder), stored_tensors(folder)
    _require_filled(config, stored, folder)
    model = without_values(config)
    values = settings(folder)
    stored = whole_weights(stored, values, config, str(folder))
    if is_official(values):
        stored = renamed(stored, names.OFFICIAL, config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names.check_names(expected, {name: each.shape for name, each in stored.items()}, str(folder))
    return model, {name: stored[name] for name in expected}


def _require_filled(config: ModelConfig, stored: Mapping[str, Stored], folder: Path) -> None:
    layers = config.vision.layers + config.llm.layers
    rows = config.llm.vocab_size * config.llm.hidden
    elements = sum(math.prod(each.shape) for each in stored.values())
    if layers > len(stored) or rows > elements:
        raise ValueError(
            f"{folder} does not fit its config.json: {layers:,} layers and {rows:,} values of word embeddings, but its "
            f"weights are {len(stored):,} tensors with {elements:,} values. Use the folder's own files."
        )


def settings(folder: Path) -> Any:
    """The values of config.json."""
    return read_json(folder / "config.json", limit=MAX_SETTINGS)


def renamed(
    stored: Mapping[str, Stored], table: Mapping[str, names.Map], config: ModelConfig
) -> dict[str, Stored]:
    """Foreign tensors under our names and in our layout; names that the table does not know stay as they are."""
    ours: dict[str, Stored] = {}
    for name, each in stored.items():
        new, layout = names.ours(name, table) or (name, names.same)
        # A foreign file has no business with our names: such a tensor must not take the place of a renamed one.
        ours[new if new != name else f"{name} (no foreign name)"] = each.laid_out(layout, config)
    return ours


def ask_as_trained(folder: Path, values: Mapping[str, Any]) -> None:
    """Say in the folder's generation_config.json how the model is asked: in the form that it was trained in last."""
    settings = folder / "generation_config.json"
    if values:
        before = read_json(settings) if settings.exists() else {}
        settings.write_text(json.dumps({**before, **values}, indent=2) + "\n")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends well and vanishes when it does not.

    A model folder that stands there is replaced, behind a link the one it leads to. Raises ValueError when `target`
    holds anything else, cannot be written, or the disk is full; what stood there before then still stands.
    """
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    _check_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(target.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
    except OSError as error:
        raise ValueError(
            f"cannot write {target} ({error.strerror}); give a folder you may write to."
        ) from None
    try:
        with locked(unfinished):
            yield unfinished
        for path in (unfinished, *unfinished.rglob("*")):  # temporary ones are their maker's only, and so are
            path.chmod(0o755 if path.is_dir() else 0o644)  # the weights as safetensors leaves them
        _put_in_place(unfinished, target)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"could not write {target}: {reason}; nothing was left of it. Make room or give another folder."
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file; give a new folder.")
    held = sorted(each.name for each in target.iterdir())
    if strange := [name for name in held if not _OWN_FILE.fullmatch(name)]:
        raise ValueError(
            f"{target} exists and holds {strange[0]}, which is no part of a model; give a new folder."
        )
    if held and not any(re.fullmatch(_WEIGHTS, name) for name in held):
        raise ValueError(f"{target} exists and holds {held[0]} but no weights; give a new folder.")


def _clear_abandoned(parent: Path) -> None:
    """Removes what killed runs left unfinished; the old model comes back where its replacement was not in place."""
    for left in parent.iterdir():
        found = _UNFINISHED.fullmatch(left.name)
        if found is None or left.is_symlink() or not left.is_dir():
            continue
        with contextlib.suppress(OSError), locked(left) as mine:
            if mine and found["replaced"] and not (parent / found["target"]).exists():
                left.rename(parent / found["target"])
            elif mine:
                shutil.rmtree(left, ignore_errors=True)


def _put_in_place(unfinished: Path, target: Path) -> None:
    """The finished folder takes its place in one step, so that a kill leaves the old model or the new one."""
    if not target.exists():
        unfinished.rename(target)
    elif not swapped(
        unfinished, target
    ):  # two steps where the system has no such step; the next run repairs them
        replaced = unfinished.with_name(unfinished.name + "-replaced")
        target.rename(replaced)
        try:
            unfinished.rename(target)
        except OSError:
            replaced.rename(target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write config.json."""
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def copy_sidecars(source: Path | None, target: Path, *, names: Iterable[str] = SIDECARS) -> None:
    """Copy the vocabulary, settings and licences that travel with the weights: the files of these names.

    Raises ValueError for one that is no file of the folder: a link out of it would carry a secret along.
    """
    for name in sorted(os.listdir(source)) if source else ():
        assert source is not None
        if any(fnmatch.fnmatchcase(name, each) for each in names) and not (source / name).is_dir():
            shutil.copyfile(_own_file(source, name), target / name)


def _own_file(folder: Path, name: str) -> Path:
    """A file of the folder; links may lead to the folder itself, and in the hub's cache to its `blobs`."""
    cache = Path(os.path.realpath(folder)).parent
    blobs = cache.parent / "blobs"
    real = Path(os.path.realpath(folder / name))
    if cache.name == "snapshots" and real.parent == blobs and real.is_file():
        return real
    return inside(folder, name, f"file of {folder}")
