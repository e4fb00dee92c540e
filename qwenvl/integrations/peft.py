"""LoRA through PEFT: added to any of the three parts, saved as PEFT saves it, merged into plain weights.

The adapters sit in our own modules; because the transformers wrapper has the same module names, a saved adapter loads
with `PeftModel.from_pretrained` on top of `AutoModelForImageTextToText` as well.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qwenvl.integrations.transformers import QwenVLForConditionalGeneration
from qwenvl.model.borrowed import bitsandbytes, hidden
from qwenvl.model.quantized import QuantizedLinear
from qwenvl.model.vlm import QwenVL

with hidden("bitsandbytes"):  # which PEFT imports by itself, for nothing
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.tuners import lora as peft_lora

TARGETS = {
    "llm": ("attention.qkv", "attention.out", "mlp.up", "mlp.gate"),
    "vision": ("attention.qkv", "attention.out", "up", "down"),
    "adapter": ("to_hidden", "out"),
}
"""Matrices of each part that LoRA adapts by default; for the LLM the official choice (c_attn, attn.c_proj, w1, w2).

`adapter.qkv` can be named too; its queries, keys and values then share one update of low rank. `adapter.query` and
`adapter.project` are no layers.
"""


TASK = "CAUSAL_LM"
"""What saved adapters say they are for: `AutoPeftModelForCausalLM` then finds the class of their base by itself."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adaptation; the values are those of the official fine-tuning script."""

    rank: int = 64
    alpha: int = 16
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    parts: tuple[str, ...] = ("llm",)
    modules: tuple[str, ...] = ()
    """Ends of module names to adapt within the parts; empty: `TARGETS`."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA of rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; expected rank >= 1, alpha > 0 "
                "and dropout in [0, 1)."
            )
        if unknown := [part for part in self.parts if part not in TARGETS] or not self.parts:
            raise ValueError(f"LoRA on {unknown or 'no part'}; expected some of {', '.join(TARGETS)}.")


def targets(model: nn.Module, lora: Lora) -> list[str]:
    """Names of the linear layers that will be adapted.

    Raises ValueError for an ending that matches none, and for a part in which none matches.
    """
    linear = [name for name, each in model.named_modules() if isinstance(each, nn.Linear | QuantizedLinear)]
    found: list[str] = []
    for ending in lora.modules or sorted({end for part in lora.parts for end in TARGETS[part]}):
        wanted = re.compile(rf"(?:{'|'.join(lora.parts)})\.(?:.*\.)?{re.escape(ending)}")
        matches = [name for name in linear if wanted.fullmatch(name)]
        if lora.modules and not matches:
            known = sorted({re.sub(r"^.*blocks\.\d+\.|^(adapter|llm)\.", "", n) for n in linear})
            raise ValueError(
                f"LoRA module {ending!r} matches nothing in {', '.join(lora.parts)}; known endings: {', '.join(known)}."
            )
        found += [name for name in matches if name not in found]
    found = [name for name in found if lora.modules or _by_default(name)]
    if missed := [part for part in lora.parts if not any(name.startswith(f"{part}.") for name in found)]:
        raise ValueError(
            f"LoRA matches nothing in {missed[0]}: none of {', '.join(lora.modules)} is a layer of it; leave the part "
            "out of --train, or name a layer of it with --modules."
        )
    return found


def _by_default(name: str) -> bool:
    part = name.split(".")[0]
    return name.removeprefix(f"{part}.").endswith(TARGETS[part])


def add_lora(model: QwenVL, lora: Lora, *, base: str = "") -> PeftModel:
    """Put adapters into `model` itself, in place; everything else is frozen. `base` is noted in adapter_config.json.

    Adapters are float32 whatever the weights are, and start as no change at all.
    """
    wrapped = QwenVLForConditionalGeneration.wrap(model)
    wrapped.name_or_path = base
    wrapped.is_loaded_in_4bit = _is_nf4(model)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets(model, lora),
        bias="none",
        task_type=None,
    )
    with _our_layers(config, plain=not wrapped.is_loaded_in_4bit):
        adapted = get_peft_model(wrapped, config)
    adapted.peft_config["default"].task_type = TASK
    return adapted


def save_lora(adapted: PeftModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapters as PEFT does: adapter_config.json and adapter_model.safetensors.

    `weights` are theirs, by name, where no process holds them whole.
    """
    whole = {} if weights is None else {"state_dict": dict(weights)}
    adapted.save_pretrained(str(folder), save_embedding_layers=False, **whole)


def load_lora(model: QwenVL, folder: Path) -> PeftModel:
    """Put the saved adapters of `folder` into `model`, in place."""
    config = LoraConfig.from_pretrained(str(folder))
    config.task_type = None
    with _our_layers(config, plain=not _is_nf4(model)):
        return PeftModel.from_pretrained(
            QwenVLForConditionalGeneration.wrap(model), str(folder), config=config
        )


class LoraLinear(peft_lora.Linear):
    """An adapted layer that leaves precision to autocast, where that is on.

    PEFT casts what comes in to the float32 of the adapters, and autocast casts it back for the product. The numbers are
    the same without both; the adapters themselves are cast once a micro-batch and get gradients in float32.
    """

    def _cast_input_dtype(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if torch.is_autocast_enabled(x.device.type) else super()._cast_input_dtype(x, dtype)


def _is_nf4(model: nn.Module) -> bool:
    return any(type(module).__name__ == "Linear4bit" for module in model.modules())


@contextmanager
def _our_layers(config: LoraConfig, *, plain: bool) -> Iterator[None]:
    """Tell PEFT how an adapter sits on a quantised layer, which it does not know and warns of, and on a `plain` one.

    It has a layer of its own for those of nf4, which are `nn.Linear` too and are left to it. Where there are none it
    would import bitsandbytes all the same, and remember what it found.
    """
    config._register_custom_module(dict.fromkeys([QuantizedLinear, *[nn.Linear] * plain], LoraLinear))
    with warnings.catch_warnings(), hidden("bitsandbytes") if plain else nullcontext():
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        _forget_bitsandbytes()
        try:
            yield
        finally:
            _forget_bitsandbytes()


def _forget_bitsandbytes() -> None:
    is_bnb_available.cache_clear()
    is_bnb_4bit_available.cache_clear()


def merge(adapted: PeftModel) -> None:
    """Add the adapters to the weights they adapt and take them out; the model underneath is plain again.

    Raises ValueError when the sum is no longer finite.
    """
    adapted.merge_and_unload(safe_merge=True)


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """LoRA as a step of training (`train.finetune.Adaptation`), over full or over 4-bit weights."""

    lora: Lora
    quantized: bool = False

    def attach(self, model: QwenVL, *, base: str) -> PeftModel:
        """Put new adapters into the model, in place, and freeze the weights below."""
        if self.quantized:
            quantize_(model, device=model.llm.embed.weight.device)
        return add_lora(model, self.lora, base=base)

    def save(self, adapted: PeftModel, weights: Mapping[str, Tensor], target: Path) -> None:
        """Write the adapters as PEFT does."""
        save_lora(adapted, target, weights)

    def load(self, model: QwenVL, source: Path) -> PeftModel:
        """Put saved adapters into the model, in place."""
        return load_lora(model, source)

    def merge(self, adapted: PeftModel) -> None:
        """Add the adapters to the weights below and take them out."""
        merge(adapted)


def quantize_(model: QwenVL, *, device: torch.device) -> int:
    """Store the matrices of the language model's blocks in 4-bit nf4 (QLoRA); returns how many were replaced.

    Needs bitsandbytes. The vision encoder, embeddings and head keep their precision, as in the official Int4 release.
    """
    try:
        bnb = bitsandbytes()
    except ImportError:
        raise ValueError("QLoRA needs bitsandbytes; install it: pip install 'qwenvl[quant]'.") from None
    replaced = 0
    for name, module in [*model.llm.blocks.named_modules()]:
        if not isinstance(module, nn.Linear):
            continue
        small = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=module.weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bnb.nn.Params4bit(module.weight.data.cpu(), requires_grad=False, quant_type="nf4").to(
            device
        )
        small.bias = module.bias
        _replace(model.llm.blocks, name, small)
        replaced += 1
    return replaced


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)
