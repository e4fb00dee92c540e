"""Facts of the published checkpoints: their configurations and the names, shapes and number of their weights."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenvl.parity.certificate import Result
from qwenvl.parsing import read_json


def certify(path: Path) -> Iterator[Result]:
    """Results for `official_state_dict.json`, for a published `config.json`, or for the folder that holds one."""
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    data = read_json(file)
    if "total_params" in data:
        yield from _weights(data)
    else:
        yield _config(f"release {file.parent.name} config", data)


WRITTEN_BY = frozenset(
    {
        "_name_or_path",
        "bf16",
        "fp16",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "use_flash_attn",
    }
)
"""Keys of a published config.json that say who wrote it, and in which precision."""


def _config(name: str, data: Mapping[str, Any]) -> Result:
    """The published configuration describes the paper's model, and is what our export of that model says."""
    from qwenvl import presets
    from qwenvl.checkpoint.official import from_official, to_official

    model = presets.qwen_vl_7b()
    written = to_official(model, "bfloat16")
    differing = [key for key in data if key not in WRITTEN_BY and data[key] != written.get(key)]
    note = f"the export writes {', '.join(differing)} otherwise" if differing else ""
    if from_official(data) != model:
        note = "not the model of presets.qwen_vl_7b"
    return Result(name, "FAIL" if note else "PASS", None, None, note)


PARTS: Mapping[str, str] = {
    "llm_blocks_32": r"transformer\.h\.",
    "wte": r"transformer\.wte\.",
    "lm_head": r"lm_head\.",
    "ln_f": r"transformer\.ln_f\.",
    "vit_conv1_posemb_lnpre_48blocks": r"transformer\.visual\.(conv1|positional_embedding|ln_pre|transformer)",
    "resampler_attn_pool": r"transformer\.visual\.attn_pool\.",
    "visual_ln_post_and_proj": r"transformer\.visual\.(ln_post|proj)",
    "visual_total": r"transformer\.visual\.",
    "llm_total_incl_lm_head": r"transformer\.(h|wte|ln_f)\.|lm_head",
}
"""Official names of the weights that are counted together."""


def _weights(data: Mapping[str, Any]) -> Iterator[Result]:
    """The export of the paper's model has the published weights, by name and shape; built without memory."""
    import torch

    from qwenvl import presets
    from qwenvl.checkpoint.converting import official_tensors
    from qwenvl.checkpoint.weights import Stored
    from qwenvl.model.vlm import without_values

    model = without_values(presets.qwen_vl_7b())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    ours = {
        name: Stored(tuple(tensor.shape), torch.bfloat16, tensor.clone)
        for name, tensor in model.state_dict().items()
    }
    exported = official_tensors(ours, model.config)
    shapes = {name: list(each.shape) for name, each in exported.items()}
    fixed = [name for name, own in zip(exported, ours, strict=True) if own not in trained]
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    facts: Mapping[str, Any] = {
        "total_params": sum(sizes.values()),
        "checkpoint_total_size_bytes": 2 * sum(sizes.values()),
        "n_keys": len(shapes),
        "parts": {
            part: sum(size for name, size in sizes.items() if re.match(pattern, name))
            for part, pattern in PARTS.items()
        },
        "non_trainable": fixed,
        "shapes": shapes,
        "shards": set(shapes),
    }
    for key, recorded in data.items():
        wanted = set(recorded) if key == "shards" else recorded
        note = "" if key in facts and facts[key] == wanted else f"{key} differs, or is not understood"
        yield Result(f"release {key}", "FAIL" if note else "PASS", None, None, note)
