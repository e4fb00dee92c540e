"""Qwen-VL for transformers 5: config, model and processor behind the Auto classes.

    import qwenvl.integrations.transformers            # makes "qwenvl" known to AutoModelForImageTextToText & Co.
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)

The folder is ours as it stands: the model's children are the three parts, so tensors keep their names, and what
`save_pretrained` writes, `qwenvl.load` reads. An official folder is converted first (`qwenvl convert`).
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwenvl.checkpoint import folder
from qwenvl.checkpoint.folder import MODEL_TYPE
from qwenvl.config import ModelConfig
from qwenvl.integrations.processor import QwenVLProcessor, QwenVLTokenizer
from qwenvl.model.llm import BRANCHES, KVCache, ntk_alpha
from qwenvl.model.vlm import QwenVL, place_images
from qwenvl.tokenizer import SPECIALS

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this version calls the keys and values of a model's output: `cache` from 5.24 on."""


class QwenVLConfig(PreTrainedConfig):
    """`ModelConfig` as transformers wants it; `shape` is the typed original."""

    __no_type_check__ = True  # transformers writes __init__ itself; a checked one would take no unknown keys
    model_type = MODEL_TYPE
    vision: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    llm: dict[str, Any] | None = None
    imgpad_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        default = ModelConfig().to_dict()
        for part in ("vision", "adapter", "llm"):
            setattr(self, part, {**default[part], **(getattr(self, part) or {})})
        self.imgpad_id = default["imgpad_id"] if self.imgpad_id is None else self.imgpad_id
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, shape: ModelConfig) -> "QwenVLConfig":
        """The same shape for transformers."""
        return cls(**shape.to_dict())

    @property
    def shape(self) -> ModelConfig:
        """The typed original. Raises ValueError for unknown keys and impossible shapes."""
        parts = ("vision", "adapter", "llm", "imgpad_id")
        return ModelConfig.from_dict({part: getattr(self, part) for part in parts})

    # What generation, PEFT and pipelines ask of any language model.

    @property
    def vocab_size(self) -> int:
        """Rows of the output head."""
        return self.shape.llm.vocab_size

    @property
    def hidden_size(self) -> int:
        """Channels per token."""
        return self.shape.llm.hidden

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the language model."""
        return self.shape.llm.layers

    @property
    def num_attention_heads(self) -> int:
        """Heads of the language model."""
        return self.shape.llm.heads

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: exactly the keys of our own folders, so that `qwenvl.load` reads it too."""
        return {"model_type": MODEL_TYPE, **self.shape.to_dict()}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write config.json."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(
            json.dumps(self.to_diff_dict(), indent=2) + "\n", encoding="utf-8"
        )


class QwenVLForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The three parts of `QwenVL` under the calling conventions of transformers: equal logits, its generation."""

    config_class = QwenVLConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _no_split_modules = ("Block", "VisionBlock", "Adapter")
    _supports_sdpa = True

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        whole = QwenVL(config.shape)
        self.vision, self.adapter, self.llm = whole.vision, whole.adapter, whole.llm
        self.post_init()

    @classmethod
    def wrap(cls, model: QwenVL) -> "QwenVLForConditionalGeneration":
        """The same parts, not copied, for transformers."""
        with torch.device("meta"):
            wrapped = cls(QwenVLConfig.of(model.config))
        wrapped.vision, wrapped.adapter, wrapped.llm = model.vision, model.adapter, model.llm
        wrapped.train(model.training)
        return wrapped

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; answers also end where the chat format says, which the official settings leave out."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.adapter.position = model.adapter.position.to(model.dtype)  # transformers casts parameters only
        settings, first = model.generation_config, model.config.imgpad_id - SPECIALS.index("<imgpad>")
        settings.eos_token_id = list(range(first, first + 3))  # <|endoftext|>, <|im_start|>, <|im_end|>
        settings.pad_token_id = first
        return loaded

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: the parts initialise themselves, and loaded weights must stay."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """Rows of the vocabulary."""
        return self.llm.embed

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Replace them."""
        self.llm.embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> torch.nn.Module:
        """The head, untied."""
        return self.llm.head

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        """Replace it."""
        self.llm.head = value  # type: ignore[assignment]

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens (images, queries, hidden)."""
        return self.adapter(self.vision(pixel_values.to(self.vision.position.dtype)))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        cache: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """`pixel_values` are (images, 3, S, S) in row-major order of their placeholders.

        `attention_mask` (batch, cached and new tokens) is 0 on padding, left or right; positions follow from it.
        `labels` are unshifted, as transformers has it. Beyond the trained length, evaluation stretches the rotary base
        (dynamic NTK, log n) by each row's own prompt. `cache` is what transformers 5.24 calls `past_key_values`.
        """
        embedded = self._embed(input_ids, pixel_values) if inputs_embeds is None else inputs_embeds
        past = past_key_values if cache is None else cache
        if use_cache and past is None:
            past = DynamicCache(config=self.config)
        hidden = self._read(embedded, attention_mask, past)
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.llm.head(hidden[:, kept])
        loss = None if labels is None else _loss(logits, labels, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: past})

    def _read(self, hidden: Tensor, attention_mask: Tensor | None, past: DynamicCache | None) -> Tensor:
        """The blocks, behind what the cache holds."""
        cached = 0 if past is None else past.get_seq_length()
        mask = _with_padding(attention_mask, cached + hidden.shape[1])
        return self.llm(
            hidden,
            positions=None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)[:, cached:],
            segments=None if mask is None else mask[:, cached:] * BRANCHES,
            cache=None if past is None else _Cache(past, mask, cached),
            long_context=None if self.training else self._long_context(mask, hidden, past, cached),
        )

    def _embed(self, ids: Tensor | None, pixels: Tensor | None) -> Tensor:
        if ids is None:
            raise ValueError("neither input_ids nor inputs_embeds given; make input_ids with the processor.")
        shape = self.config.shape
        visual = None if pixels is None else self.get_image_features(pixels)
        return place_images(self.llm.embed(ids), ids == shape.imgpad_id, visual, shape.adapter.queries)

    def _long_context(
        self, mask: Tensor | None, hidden: Tensor, past: DynamicCache | None, cached: int
    ) -> Tensor | None:
        """Each row's stretch, fixed by its prompt and remembered on the cache; None while all is within training."""
        config, total = self.config.shape.llm, cached + hidden.shape[1]
        alpha: Tensor | None = getattr(past, "ntk_alpha", None)
        if total <= config.sequence_length and alpha is None:
            return None
        if alpha is None:
            prompt = (
                [total if cached == 0 else 1] * len(hidden)
                if mask is None or cached
                else mask.sum(1).tolist()
            )
            alpha = torch.tensor([ntk_alpha(max(1, int(n)), config) for n in prompt], device=hidden.device)
            if past is not None and cached == 0:
                past.ntk_alpha = alpha
        return alpha

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Beams and several answers: the pictures of a row are repeated together, in the order of its slots."""
        pixels = kwargs.pop("pixel_values", None)
        if pixels is not None and input_ids is not None and expand_size > 1:
            shape = self.config.shape
            each = ((input_ids == shape.imgpad_id).sum(1) // shape.adapter.queries).tolist()
            pixels = torch.cat([own.repeat(expand_size, 1, 1, 1) for own in pixels.split(each)])
        ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return ids, {**kwargs, "pixel_values": pixels}


class _Cache(KVCache):
    """Lets our blocks write into the cache that transformers owns, reorders and crops."""

    def __init__(self, past: DynamicCache, mask: Tensor | None, cached: int) -> None:
        self.past, self.length = past, cached
        self.segments = None if mask is None or not cached else mask[:, :cached] * BRANCHES

    def __bool__(self) -> bool:
        return True

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens of one layer; returns everything stored, new tokens included."""
        return self.past.update(key, value, layer)


def _with_padding(mask: Tensor | None, tokens: int) -> Tensor | None:
    """The mask where it hides something, else None: then plain causality says it all."""
    if mask is None or bool(mask.all()):
        return None
    if mask.shape[1] != tokens:
        raise ValueError(
            f"attention_mask has {mask.shape[1]} columns for {tokens} tokens, cached ones included; "
            "give one column each."
        )
    return mask.long()


def _loss(logits: Tensor, labels: Tensor, items: int | Tensor | None) -> Tensor:
    """Mean over the learned tokens, or their sum over `items` where the trainer knows the count of a whole update."""
    shifted = logits[:, :-1].float().flatten(0, 1)
    total = F.cross_entropy(
        shifted, labels[:, 1:].flatten().to(logits.device), ignore_index=-100, reduction="sum"
    )
    return total / ((labels[:, 1:] != -100).sum().clamp(min=1) if items is None else items)


def export(source: str | Path, target: Path) -> None:
    """Rewrite a checkpoint, bit for bit, as a folder that every Auto class loads: ours, and the tokenizer's class."""
    with folder.new_folder(target) as unfinished:
        folder.convert(source, unfinished)
        QwenVLProcessor.from_pretrained(unfinished).save_pretrained(unfinished)


AutoConfig.register(MODEL_TYPE, QwenVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)
AutoTokenizer.register(QwenVLConfig, slow_tokenizer_class=QwenVLTokenizer, exist_ok=True)
