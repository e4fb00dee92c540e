"""Quantised layers on disk, in the layouts of those who invented them.

    int4   GPTQ: the tensors of Qwen-VL-Chat-Int4 (`checkpoint.gptq`)
    int8   compressed-tensors, `int-quantized`: `weight` int8 (out, in), `weight_scale` (out, 1)

Which layers are quantised is told by their tensors, by which method by `quantization_config` in config.json. Layers of
both kinds may stand in one folder.
"""

from collections.abc import Mapping
from typing import Any

import torch

from qwenvl.checkpoint import gptq
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
    _check_method(settings.get(SETTING), bool(four), where)
    result = {
        name: each
        for name, each in stored.items()
        if name.rpartition(".")[0] not in four and not name.endswith(".weight_scale")
    }
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


def _check_method(said: Any, four: bool, where: str) -> None:
    if said is None and not four:
        return
    said = said if isinstance(said, Mapping) else {}
    method, bits = said.get("quant_method", "gptq"), said.get("bits", gptq.BITS)
    if (method, bits) == ("gptq", gptq.BITS):
        return
    if method == "compressed-tensors" and said.get("format") == "int-quantized" and not four:
        return
    detail = said.get("format", "") if method == "compressed-tensors" else f"to {bits} bits"
    raise ValueError(
        f"{where} is quantised by {printable(str(method))} {printable(str(detail))}; expected gptq and {gptq.BITS}, or "
        "compressed-tensors int-quantized. Use the checkpoint that is not quantised."
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
    if levels is None or levels.dtype != torch.int8 or scales.shape != (levels.shape[0], 1):
        found = "no weight" if levels is None else f"{named(levels.dtype)} {levels.shape}"
        raise ValueError(
            f"{where} holds {printable(layer)} as {found} with scales of shape {scales.shape}; expected int8 and one "
            "scale a row. Copy the folder again."
        )
    weight = levels

    def integers() -> Integers:
        return Integers(kind="int8", levels=weight.read(), scales=scales.read())

    size = weight.size + 4 * weight.shape[0]
    return Stored(weight.shape, plain, lambda: integers().dequantised(plain), integers, size)


def named(dtype: torch.dtype) -> str:
    """`int8` of `torch.int8`."""
    return str(dtype).removeprefix("torch.")
