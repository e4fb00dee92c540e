"""A checkpoint with weights of 8 or 4 bits: rounded matrix by matrix, written in layouts that other tools read.

What is rounded are the matrices of the language model's blocks, as in Qwen-VL-Chat-Int4, and on request those of the
vision encoder's blocks and the head, to 8 bits. Everything else is kept, float32 as bfloat16.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenvl.checkpoint import folder, gptq, names, nf4
from qwenvl.checkpoint.calibration import Moments, Shown
from qwenvl.checkpoint.layers import SETTING, named
from qwenvl.checkpoint.official import is_official, to_official
from qwenvl.checkpoint.weights import Stored, stored_tensors
from qwenvl.checkpoint.writing import write_tensors
from qwenvl.config import ModelConfig
from qwenvl.model.compensated import compensated
from qwenvl.model.integers import Integers, Kind, group_for, rounded
from qwenvl.runtime import tight_memory

LLM = re.compile(r"llm\.blocks\.\d+\.(attention\.(qkv|out)|mlp\.(up|gate|down))\.weight")
VISION = re.compile(r"vision\.blocks\.\d+\.(attention\.(qkv|out)|up|down)\.weight")
HEAD = re.compile(r"llm\.head\.weight")

EXACT = ("adapter.position",)
"""Tables that are computed, not learned, and keep their bits."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which matrices become integers."""

    to: Kind
    """Those of the language model's blocks."""
    vision: bool = False
    """Those of the vision encoder's blocks too, to 8 bits."""
    head: bool = False
    """The head too, to 8 bits."""

    def kind_of(self, name: str) -> Kind | None:
        """What the tensor of this name (ours) becomes; None: it is kept."""
        if LLM.fullmatch(name):
            return self.to
        eight = (self.vision and VISION.fullmatch(name)) or (self.head and HEAD.fullmatch(name))
        return "int8" if eight else None


def quantize(source: str | Path, target: str | Path, plan: Plan, shown: Sequence[Shown] = ()) -> None:
    """Write the model of `source` with weights of 8 or 4 bits; one matrix is in memory at a time.

    With documents that are shown to the model, 4 bits are rounded so that the outputs for these suffer least (GPTQ);
    then a block of the language model is in memory at a time.

    The folder has the official form where the model has one, else ours. It appears only when it is whole. Raises
    ValueError for a checkpoint that is quantised already, incomplete, or beside a vocabulary of another.
    """
    place = folder.resolve(source)
    model, stored = folder.our_tensors(place)
    config = model.config
    _require_plain(place, stored)
    folder.require_own_vocabulary(place)
    group = group_for(plan.to, {each.shape[1] for name, each in stored.items() if LLM.fullmatch(name)})
    values, table = _form(place, config, stored)
    moments = Moments(model, stored, shown) if shown else None
    tensors: dict[str, Stored] = {}
    for ours, each in stored.items():
        name, layout = (
            (ours, names.same) if table is None else names.foreign(ours, table) or (ours, names.same)
        )
        tensor = each.laid_out(layout, config)
        kind = plan.kind_of(ours)
        if kind is None:
            tensors[name] = tensor if ours in EXACT else _narrow(tensor)
        else:
            given = partial(moments.of, ours) if moments and LLM.fullmatch(ours) else None
            tensors |= _parts(name.removesuffix(".weight"), tensor, kind, group, given)
    for layer in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        tensors.setdefault(f"{layer}.bias", _zeros(tensors[f"{layer}.qweight"].shape[1]))
    with folder.new_folder(Path(target)) as unfinished, tight_memory():
        write_tensors(unfinished, tensors)
        folder.copy_sidecars(place, unfinished)
        (unfinished / folder.REMEMBERED["config.json"]).unlink(missing_ok=True)
        folder.write_config(unfinished, {**values, SETTING: _method(plan, group, table is not None)})


def size_of(checkpoint: str | Path) -> int:
    """Bytes of the weights of a checkpoint."""
    return sum(each.size for each in stored_tensors(folder.resolve(checkpoint)).values())


def _require_plain(place: Path, stored: Mapping[str, Stored]) -> None:
    if any(each.integers for each in stored.values()) or SETTING in folder.settings(place):
        raise ValueError(
            f"{place} is quantised already, and would only lose by it again; quantise the checkpoint that it was "
            "made from."
        )


def _form(
    place: Path, config: ModelConfig, stored: Mapping[str, Stored]
) -> tuple[dict[str, Any], Mapping[str, names.Map] | None]:
    """The values of config.json and the table of names: official ones, or None where the model has no such form."""
    values = folder.settings(place)
    if is_official(values):
        return dict(values), names.OFFICIAL
    try:
        return to_official(config, named(stored["llm.embed.weight"].dtype)), names.OFFICIAL
    except ValueError:
        return {"model_type": folder.MODEL_TYPE, **config.to_dict()}, None


def _narrow(each: Stored) -> Stored:
    """Bits as they are; of float32, bfloat16."""
    if each.dtype not in (torch.float32, torch.float64):
        return each
    return Stored(each.shape, torch.bfloat16, lambda: each.read().bfloat16())


def _zeros(out: int) -> Stored:
    return Stored((out,), torch.float16, lambda: torch.zeros(out, dtype=torch.float16))


def _parts(
    layer: str, weight: Stored, kind: Kind, group: int, moments: Callable[[], Tensor] | None
) -> dict[str, Stored]:
    """The tensors of one layer; rounded when the first of them is read, and kept until the last one has been."""
    (shapes, tensors), (out, width) = _LAYOUTS[kind], weight.shape
    made: dict[str, Tensor] = {}

    def read(part: str) -> Tensor:
        if part not in made:
            try:
                if moments is None:
                    integers = rounded(weight.read(), kind, group=group)
                else:
                    integers = compensated(weight.read(), moments(), kind, group=group)
            except ValueError as error:
                raise ValueError(f"{layer} cannot be rounded: {error}") from None
            made.update(tensors(integers))
        return made.pop(part)

    return {
        f"{layer}.{part}": Stored(shape, dtype, _reader(read, part))
        for part, (shape, dtype) in shapes(out, width, group).items()
    }


def _reader(read: Callable[[str], Tensor], part: str) -> Callable[[], Tensor]:
    return lambda: read(part)


def _shapes_of_bytes(out: int, width: int, group: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {"weight": ((out, width), torch.int8), "weight_scale": ((out, 1), torch.float32)}


def _bytes_of(integers: Integers) -> dict[str, Tensor]:
    return {"weight": integers.levels, "weight_scale": integers.scales}


_LAYOUTS: Mapping[
    Kind,
    tuple[
        Callable[[int, int, int], dict[str, tuple[tuple[int, ...], torch.dtype]]],
        Callable[[Integers], dict[str, Tensor]],
    ],
] = {
    "int8": (_shapes_of_bytes, _bytes_of),
    "int4": (gptq.shapes, gptq.parts_of),
    "nf4": (nf4.shapes, nf4.parts_of),
}
"""Kind -> the tensors of a layer of these outputs, inputs and group, and how they are made."""


def _method(plan: Plan, group: int, official: bool) -> dict[str, Any]:
    """The `quantization_config`, in the words of the tools that read it."""
    if plan.to == "int4":
        inside = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
        return {
            "quant_method": "gptq",
            "bits": gptq.BITS,
            "group_size": group,
            "sym": True,
            "desc_act": False,
            **({"modules_in_block_to_quantize": [[name] for name in inside]} if official else {}),
        }
    if plan.to == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["visual", "lm_head"] if official else ["vision", "adapter", "head"],
        }
    kept = [] if plan.vision else ["re:.*visual.*" if official else "re:vision.*"]
    kept += [] if plan.head else ["lm_head" if official else "llm.head"]
    kept += [] if official else ["re:adapter.*"]
    whole = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**whole, "strategy": "channel", "dynamic": False},
                "input_activations": {**whole, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": kept,
    }
