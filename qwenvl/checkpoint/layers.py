"""Quantised layers on disk, in the layouts of those who invented them.

    int4   GPTQ: the tensors of Qwen-VL-Chat-Int4 (`checkpoint.gptq`)
    nf4    bitsandbytes: `weight`, `weight.absmax` and others (`checkpoint.nf4`)
    int8   compressed-tensors, `int-quantized`: `weight` int8 (out, in), `weight_scale` (out, 1)

Which layers are quantised is told by their tensors, by which method by `quantization_config` in config.json. Layers of
both kinds may stand in one folder.
"""

from collections.abc import Mapping
from typing import Any

import torch

from qwenvl.checkpoint import gptq, nf4
from qwenvl.checkpoint.weights import Stored
from qwenvl.config import ModelConfig
from qwenvl.model.integers import Integers
from qwenvl.terminal import printable

SETTING = "quantization_config"
"""Key of config.json."""

_WITH_BIAS = ("c_attn", "attention.qkv")
"""Ends of names of the language model's layers that have a bias whatever its config says."""


def whole_weights(
    stored: Mapping[str, Stored], settings: Mapping[str, Any], config: ModelConfig, where: str
) -> dict[str, Stored]:
    """The tensors of a folder with every quantised layer as one weight; others stay as they are.

    `settings` is the folder's config.json. Raises ValueError for a method that is not read here, a layer that is not
    whole, and a bias that this model has no place for and is not zero.
    """
    four = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    eight = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    normal = [name.removesuffix(f".{nf4.STATE}") for name in stored if name.endswith(f".{nf4.STATE}")]
    _check_method(settings.get(SETTING), "gptq" if four else "bitsandbytes" if normal else None, where)
    parts_of_normal = {f"{layer}.{part}" for layer in normal for part in (*nf4.PARTS, *nf4.NESTED)}
    result = {
        name: each
        for name, each in stored.items()
        if name.rpartition(".")[0] not in four
        and name not in parts_of_normal
        and not name.endswith(".weight_scale")
    }
    for layer in normal:
        found = {part: stored.get(f"{layer}.{part}") for part in (*nf4.PARTS, *nf4.NESTED)}
        own = {part: each for part, each in found.items() if each is not None}
        result[f"{layer}.weight"] = nf4.stored_weight(own, printable(layer), where)
    for layer in four:
        parts = [stored.get(f"{layer}.{part}") for part in gptq.PARTS]
        result[f"{layer}.weight"] = gptq.stored_weight([each for each in parts if each], layer, where)
        result |= _bias(stored.get(f"{layer}.bias"), layer, config, where)
    plain = next((each.dtype for each in result.values() if each.dtype.is_floating_point), torch.bfloat16)
    for layer in eight:
        result[f"{layer}.weight"] = _eight_bits(stored, layer, plain, where)
    for name, each in result.items():
        if name.endswith(".weight") and not each.dtype.is_floating_point:
            raise ValueError(
                f"{where} holds {printable(name)} as {named(each.dtype)} without a scale of its own; expected "
                "`weight_scale` beside it. Copy the folder again."
            )
    return result


READ: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "gptq": {
        "bits": (gptq.BITS,),
        "checkpoint_format": ("gptq", "", None),
        "format": ("gptq", "", None),
        "quant_type": ("int", None),
    },
    "compressed-tensors": {"format": ("int-quantized",)},
    "bitsandbytes": {"load_in_4bit": (True,), "bnb_4bit_quant_type": ("nf4",)},
}
"""Method -> what its settings must say for it to be read here, the usual first."""


def _check_method(said: Any, seen: str | None, where: str) -> None:
    """`seen`: the method that the tensors of 4 bits are of; None: there are none."""
    if said is None and seen is None:
        return
    said = {"bits": gptq.BITS, **said} if isinstance(said, Mapping) else {"bits": gptq.BITS}
    method = said.get("quant_method", "gptq" if seen is None else seen)
    wanted = READ.get(method) if isinstance(method, str) else None
    if wanted is None or (seen is not None and seen != method):
        raise ValueError(
            f"{where} is quantised by {printable(str(method))}"
            f"{'' if seen in (None, method) else f' but holds tensors of {seen}'}; expected one of "
            f"{', '.join(READ)}. Use the checkpoint that is not quantised."
        )
    for key, values in wanted.items():
        if said.get(key, values[0]) not in values:
            raise ValueError(
                f"{where} is quantised by {method} with {key} {printable(str(said[key]))}; expected {values[0]}. "
                "Use the checkpoint that is not quantised."
            )


def _bias(each: Stored | None, layer: str, config: ModelConfig, where: str) -> dict[str, Stored]:
    """The bias of a GPTQ layer, where the model has one."""
    if each is None:
        return {}
    if layer.endswith(_WITH_BIAS) or ".visual." in layer or layer.startswith("vision.") or config.llm.bias:
        return {f"{layer}.bias": each}
    if each.read().any():
        raise ValueError(
            f"{where} has a bias in {layer} that its config.json denies (no_bias); copy the folder again."
        )
    return {}


def _eight_bits(stored: Mapping[str, Stored], layer: str, plain: torch.dtype, where: str) -> Stored:
    levels, scales = stored.get(f"{layer}.weight"), stored[f"{layer}.weight_scale"]
    if levels is None or levels.dtype != torch.int8 or not _divide(scales.shape, levels.shape):
        found = "no weight" if levels is None else f"{named(levels.dtype)} {levels.shape}"
        raise ValueError(
            f"{where} holds {printable(layer)} as {found} with scales of shape {scales.shape}; expected int8 and one "
            "scale a row or group. Copy the folder again, or use the checkpoint that is not quantised."
        )
    weight = levels

    def integers() -> Integers:
        return Integers(kind="int8", levels=weight.read(), scales=scales.read())

    size = weight.size + 4 * scales.size // scales.dtype.itemsize
    return Stored(weight.shape, plain, lambda: integers().dequantised(plain), integers, size)


def _divide(scales: tuple[int, ...], levels: tuple[int, ...]) -> bool:
    """Whether there is a scale for each row, or for each of its equal groups."""
    return (
        len(scales) == len(levels) == 2
        and scales[0] == levels[0]
        and scales[1] > 0
        and levels[1] % scales[1] == 0
    )


def named(dtype: torch.dtype) -> str:
    """`int8` of `torch.int8`."""
    return str(dtype).removeprefix("torch.")
