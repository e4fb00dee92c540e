"""The shape of a Qwen-VL as a frozen tree of facts (paper 2.1, Table 1), free of torch.

One class per component; derived values are properties; `__post_init__` validates and never assigns. The tree
round-trips through JSON (`to_dict`, `from_dict`) and refuses keys it does not know.
"""

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

POSITION_GRID = 16
"""Side of the stored grid of vision positions: 16 x 16 at every resolution, interpolated to the patches."""

LARGEST_WIDTH = 1 << 20
"""Channels, heads or queries of a part: a hundred times the largest models."""

LARGEST: Mapping[str, float] = {
    "layers": 10_000,
    "vocab_size": 1 << 27,
    "sequence_length": 1 << 27,
    "image_size": 1 << 14,
    "rope_base": 1e12,
}
"""What a config.json may say at most; a larger number is a mistake, or meant to take all memory."""

_SEVERAL: Mapping[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Vision encoder (paper 2.1, Table 1): OpenCLIP ViT-bigG/14 without its class token and pooling."""

    width: int = 1664
    """Channels per patch."""
    layers: int = 48
    """Transformer blocks."""
    heads: int = 16
    """Attention heads; `width` divides into them."""
    mlp_width: int = 8192
    """Hidden channels of each block's two-layer perceptron."""
    patch_size: int = 14
    """Pixels along one side of a patch."""
    image_size: int = 448
    """Pixels along one side of the square input: 224 in stage 1, 448 after."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm (OpenCLIP's own checkpoint was trained with 1e-5)."""

    def __post_init__(self) -> None:
        _require_positive(self)
        _require_divides("vision.heads", self.heads, "vision.width", self.width)
        _require_divides("vision.patch_size", self.patch_size, "vision.image_size", self.image_size)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches per image: (image_size / patch_size) squared."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Position-aware vision-language adapter (paper 2.1): one cross-attention read by learned queries."""

    queries: int = 256
    """Visual tokens per image, a square number: the queries form a grid."""
    heads: int = 32
    """Attention heads; the release has one per 128 channels of the language model."""
    norm_eps: float = 1e-6
    """Epsilon of its three LayerNorms."""

    def __post_init__(self) -> None:
        _require_positive(self)
        if math.isqrt(self.queries) ** 2 != self.queries:
            raise ValueError(
                f"adapter.queries is {self.queries}; the queries form a square grid, so give a square number "
                "such as 16, 64 or 256."
            )


@dataclass(frozen=True, kw_only=True)
class LLMConfig:
    """Language model (paper 2.1, Table 1): Qwen-7B, a decoder with rotary positions and a gated perceptron."""

    vocab_size: int = 151_936
    """Rows of the embedding and of the untied output head; padded beyond the tokenizer's 151,860."""
    hidden: int = 4096
    """Channels per token."""
    layers: int = 32
    """Transformer blocks."""
    heads: int = 32
    """Attention heads; `hidden` divides into them."""
    mlp_width: int = 11_008
    """Channels of the gated perceptron (the official `intermediate_size` counts gate and value: twice this)."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    rotary_fraction: float = 1.0
    """Share of each head's channels that rotates."""
    bias: bool = False
    """Whether the attention output and the perceptron have biases; the query-key-value projection always has one."""
    sequence_length: int = 2048
    """Tokens the model was trained on; beyond it positions are stretched at inference."""
    dynamic_ntk: bool = True
    """Stretch the rotary base by the prompt's length at inference (official `use_dynamic_ntk`)."""
    log_n: bool = True
    """Scale queries beyond `sequence_length` by log n at inference (official `use_logn_attn`)."""

    def __post_init__(self) -> None:
        _require_positive(self)
        _require_divides("llm.heads", self.heads, "llm.hidden", self.hidden)
        if not 0 < self.rotary_fraction <= 1:
            raise ValueError(f"llm.rotary_fraction is {self.rotary_fraction}; it is a share in (0, 1].")

    @property
    def head_width(self) -> int:
        """Channels per attention head."""
        return self.hidden // self.heads

    @property
    def rotary_width(self) -> int:
        """Channels of each head that rotate."""
        return int(self.head_width * self.rotary_fraction)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole Qwen-VL: encoder, adapter, language model and the id that marks an image's place."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    imgpad_id: int = 151_859
    """Id of `<imgpad>`: every slot that a visual token fills holds it."""

    def __post_init__(self) -> None:
        _require_divides("adapter.heads", self.adapter.heads, "llm.hidden", self.llm.hidden)
        if not 0 <= self.imgpad_id < self.llm.vocab_size:
            raise ValueError(
                f"imgpad_id is {self.imgpad_id} but the vocabulary has {self.llm.vocab_size} rows; "
                "raise llm.vocab_size or use the tokenizer's <imgpad> id."
            )

    def at(self, image_size: int) -> "ModelConfig":
        """The same model for square images of `image_size` pixels; no weight changes its shape."""
        return dataclasses.replace(self, vision=dataclasses.replace(self.vision, image_size=image_size))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "ModelConfig":
        """The reverse of `to_dict`. Raises ValueError for an unknown key or a value of another type."""
        return from_dict(ModelConfig, values)

    @staticmethod
    def from_whole_dict(values: Mapping[str, Any]) -> "ModelConfig":
        """`from_dict` of what was saved whole. Raises ValueError where a field is missing, default or not."""
        config = ModelConfig.from_dict(values)
        _require_whole(values, config.to_dict())
        return config


def from_dict(cls: type[Config], values: Any, where: str = "config") -> Config:
    """Build a (nested) config dataclass from plain values; strict about names and types.

    Integers are accepted where a float is expected. Raises ValueError that names the key, what was found and
    what is known, and for a key without a default that is missing.
    """
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where} is {type(values).__name__}; expected an object with the fields of {cls.__name__}."
        )
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"{where} has the unknown key {unknown[0]!r}; known keys: {', '.join(sorted(hints))}."
        )
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = [field.name for field in fields if _required(field) and field.name not in values]
    if missing:
        raise ValueError(f"{where} lacks the key {missing[0]!r}; {cls.__name__} needs {', '.join(missing)}.")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _require_whole(values: Mapping[str, Any], whole: Mapping[str, Any], where: str = "") -> None:
    for name, value in whole.items():
        if name not in values:  # another number of heads would fit the same weights
            raise ValueError(f"it lacks {where}{name}, which no weight tells; copy it again from its source.")
        if isinstance(value, Mapping):
            _require_whole(values[name], value, f"{where}{name}.")


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(expected: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return from_dict(expected, value, where)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(expected) is tuple:
        kinds = get_args(expected)
        if not isinstance(value, list | tuple):
            raise ValueError(
                f"{where} is {reprlib.repr(value)}; expected a list of {_SEVERAL.get(kinds[0], 'tables')}."
            )
        of = [kinds[0]] * len(value) if kinds[-1] is ... else kinds
        if len(value) != len(of):
            raise ValueError(f"{where} is {reprlib.repr(value)}; expected a list of {len(of)} values.")
        pairs = enumerate(zip(of, value, strict=True))
        return tuple(_convert(kind, each, f"{where}[{k}]") for k, (kind, each) in pairs)
    if get_origin(expected) is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; expected a table of names and values.")
        return {
            str(key): _convert(get_args(expected)[1], each, f"{where}.{key}") for key, each in value.items()
        }
    matches = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    if not matches:
        raise ValueError(f"{where} is {reprlib.repr(value)}; expected {expected.__name__}.")
    return value


def _require_positive(config: Any) -> None:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not value > 0:
            raise ValueError(f"{type(config).__name__}.{item.name} is {value}; it must be positive.")
        if value > (most := LARGEST.get(item.name, LARGEST_WIDTH)):
            raise ValueError(f"{type(config).__name__}.{item.name} is {value:g}; at most {most:,} is built.")


def _require_divides(small: str, divisor: int, big: str, number: int) -> None:
    if number % divisor:
        raise ValueError(f"{small} is {divisor}, which does not divide {big} = {number}; choose a divisor.")
