"""The three parts of `QwenVL` under the calling conventions of transformers: equal logits, its generation and training.

The model's children are the parts themselves, so tensors keep their names: what `save_pretrained` writes, `qwenvl.load`
reads, and the other way round. An official folder is read in place.
"""

import inspect
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from qwenvl.checkpoint.folder import our_tensors
from qwenvl.checkpoint.official import is_official
from qwenvl.files import atomic
from qwenvl.integrations.huggingface.attention import context, weights_of
from qwenvl.integrations.huggingface.config import QwenVLConfig, is_packed
from qwenvl.integrations.huggingface.hub import HUB, folder_of
from qwenvl.model.adapter import Adapter, sine_cosine_2d
from qwenvl.model.llm import Block
from qwenvl.model.vision import VisionTransformer
from qwenvl.model.vlm import QwenVL, place_images
from qwenvl.parsing import read_json

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this version calls the keys and values of a model's output: `cache` from 5.24 on."""

SAMPLING = ("temperature", "top_k", "top_p")
"""Settings that mean nothing without `do_sample`; transformers refuses to save them then."""


class QwenVLModel(PreTrainedModel):
    """Everything before the head."""

    config_class = QwenVLConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    accepts_loss_kwargs = True
    _no_split_modules = ("Block", "VisionBlock", "Adapter")
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        whole = QwenVL(config.shape)
        self.vision, self.adapter, self.llm = whole.vision, whole.adapter, whole.llm
        self._follow_precision()
        self.post_init()

    def _follow_precision(self) -> None:
        """The fixed positions of the adapter in the precision of its weights; transformers turns parameters only."""
        self.adapter.position = self.adapter.position.to(self.adapter.query.dtype)

    def _init_weights(self, module: nn.Module) -> None:
        """Start what a checkpoint lacks, and new rows of a vocabulary."""
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            init.normal_(module.position, std=module.position.shape[1] ** -0.5)
        if isinstance(module, Adapter):
            queries, hidden = module.query.shape
            init.normal_(module.query, std=self.config.initializer_range)
            init.normal_(module.project, std=hidden**-0.5)
            init.copy_(module.position, sine_cosine_2d(round(queries**0.5), hidden))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """As in transformers, from an official folder or hub id too, whose tensors are renamed on the way.

        A folder of `qwenvl quantize` or Qwen-VL-Chat-Int4 gives the plain weights that its integers mean.

        Answers also end where the chat format says, which the official settings leave out. Raises ValueError, by name,
        for missing, unknown or misshapen tensors of an official folder, and for weight files that are missing or
        truncated in any.
        """
        official = _official_folder(pretrained_model_name_or_path, kwargs)
        if official is None:
            extra = {} if config is None else {"config": config}
            try:
                loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **extra, **kwargs)
            except (SafetensorError, OSError, RuntimeError):
                _look_for_the_reason(pretrained_model_name_or_path, kwargs)
                raise
        else:
            config = (
                config if isinstance(config, PreTrainedConfig) else QwenVLConfig.from_pretrained(official)
            )
            state = {name: each.read() for name, each in our_tensors(official)[1].items()}
            loaded = super().from_pretrained(None, *args, config=config, state_dict=state, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._follow_precision()
        model._settle(official)
        return loaded

    def _settle(self, official: Path | None) -> None:
        """What is left to do after loading."""

    def get_input_embeddings(self) -> nn.Module:
        """Rows of the vocabulary."""
        return self.llm.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace them."""
        self.llm.embed = value  # type: ignore[assignment]

    def get_decoder(self, *_: Any) -> Any:
        """The model itself: its parts are no models of transformers."""
        return self

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens (images, queries, hidden)."""
        return self.adapter(self.vision(pixel_values.to(self.vision.position.dtype)))

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, cache: Cache | None = None,
        use_cache: bool | None = None, output_hidden_states: bool | None = None,
        output_attentions: bool | None = None, return_dict: bool | None = None, cache_position: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Normalised hidden states of every token.

        `pixel_values` are (images, 3, S, S) in row-major order of their placeholders, which are looked for in
        `input_ids`, or in `inputs_embeds` where those alone are given. `attention_mask` (batch, cached and new tokens)
        is 0 on padding, left or right; positions follow from it. `position_ids` that begin again begin a document.
        Beyond the trained length, evaluation stretches the rotary base (dynamic NTK, log n) by each row's own prompt.
        `cache` is what transformers 5.24 calls `past_key_values`; `cache_position` (before 5.3) says what it says.
        """
        hidden = self._embed(input_ids, inputs_embeds, pixel_values)
        past = self._cache_for(past_key_values if cache is None else cache, use_cache)
        read = self._read(hidden, attention_mask, position_ids, past, output_hidden_states, output_attentions)
        return self._returned(read, return_dict)

    def _cache_for(self, past: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache that was handed in, or a new one where one is wanted."""
        keeps = self.config.use_cache and not self.training if use_cache is None else use_cache
        recomputed = self.gradient_checkpointing and self.training
        return DynamicCache(config=self.config) if keeps and past is None and not recomputed else past

    def _returned(self, output: Any, return_dict: bool | None) -> Any:
        return (
            output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
        )

    def _embed(self, ids: Tensor | None, embeds: Tensor | None, pixels: Tensor | None) -> Tensor:
        """Rows of the vocabulary with the visual tokens in their places."""
        if ids is None and embeds is None:
            raise ValueError("neither input_ids nor inputs_embeds given; make input_ids with the processor.")
        hidden = self.llm.embed(ids) if embeds is None else embeds
        imgpad = torch.tensor(self.config.imgpad_id, device=hidden.device)
        if ids is not None:
            slots = ids == imgpad
        elif pixels is None:
            return hidden
        else:  # the row of <imgpad> itself, as prompt tuning hands it over
            slots = (hidden == self.llm.embed(imgpad).to(hidden.dtype)).all(-1)
        visual = None if pixels is None else self.get_image_features(pixels)
        return place_images(hidden, slots, visual, self.config.adapter["queries"])

    def _read(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        position_ids: Tensor | None,
        past: Cache | None,
        with_states: bool | None,
        with_attentions: bool | None,
    ) -> BaseModelOutputWithPast:
        """The blocks, behind what the cache holds; the last of the states is normalised."""
        config = self.config
        with_states = config.output_hidden_states if with_states is None else with_states
        with_attentions = config.output_attentions if with_attentions is None else with_attentions
        around = context(
            hidden,
            self.llm.config,
            mask=mask,
            position_ids=position_ids,
            past=past,
            training=self.training,
            tensor_mask=bool(with_attentions),
        )
        states, attentions = [hidden], []
        for block in cast(Iterable[Block], self.llm.blocks):
            before, hidden = hidden, block(hidden, around)
            states.append(hidden)
            if with_attentions:
                attentions.append(weights_of(block, before, around))
        states[-1] = hidden = self.llm.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=tuple(states) if with_states else None,
            attentions=tuple(attentions) if with_attentions else None,
            **{CACHE: past},
        )

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **_: Any
    ) -> None:
        """Let each block of the vision encoder and of the language model keep its input alone, or no longer."""
        self.gradient_checkpointing = enable
        for block in (*self.vision.blocks, *self.llm.blocks):
            if isinstance(block.forward, _Recomputed):
                block.forward = block.forward.inner
            if enable:
                block.forward = _Recomputed(block, gradient_checkpointing_func)


class _Recomputed:
    """A block's `forward` that is computed again in the backward pass, while it trains."""

    def __init__(self, block: nn.Module, checkpoint: Callable[..., Any]) -> None:
        self.block, self.inner, self.checkpoint = block, block.forward, checkpoint

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.block.training and torch.is_grad_enabled():
            return self.checkpoint(partial(self.inner, **kwargs), *args)
        return self.inner(*args, **kwargs)


class _Backbone:
    """A model as far as the head: what losses that bring their own head call (TRL's)."""

    def __init__(self, model: QwenVLModel) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return QwenVLModel.forward(self._model, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class QwenVLForConditionalGeneration(QwenVLModel, GenerationMixin):
    """The whole model: logits, a loss, generation."""

    @property
    def base_model(self) -> Any:
        """The model without its head; it holds nothing of its own."""
        return _Backbone(self)

    @classmethod
    def wrap(cls, model: QwenVL) -> "QwenVLForConditionalGeneration":
        """The same parts, not copied, for transformers."""
        with torch.device("meta"):
            wrapped = cls(QwenVLConfig.of(model.config))
        wrapped.vision, wrapped.adapter, wrapped.llm = model.vision, model.adapter, model.llm
        wrapped.train(model.training)
        return wrapped

    def _settle(self, official: Path | None) -> None:
        """Where answers end, and sampling settings laid aside until they are asked for."""
        if official is not None and (official / "generation_config.json").exists():
            self.generation_config = GenerationConfig.from_pretrained(official)
        settings = self.generation_config
        settings.eos_token_id, settings.pad_token_id = self.config.ends(), self.config.endoftext
        if not settings.do_sample:
            self._aside = {name: getattr(settings, name, None) for name in SAMPLING}
            for name in SAMPLING:
                setattr(settings, name, None)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder's sampling settings stay in generation_config.json."""
        super().save_pretrained(save_directory, *args, **kwargs)
        file = Path(save_directory) / "generation_config.json"
        aside = {name: value for name, value in getattr(self, "_aside", {}).items() if value is not None}
        if aside and file.exists() and not self.generation_config.do_sample:
            values = {**read_json(file), **aside}
            with atomic(file) as written:
                written.write((json.dumps(values, indent=2) + "\n").encode())

    def get_output_embeddings(self) -> nn.Module:
        """The head, untied."""
        return self.llm.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.llm.head = value  # type: ignore[assignment]

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, cache: Cache | None = None,
        use_cache: bool | None = None, output_hidden_states: bool | None = None,
        output_attentions: bool | None = None, return_dict: bool | None = None, cache_position: Tensor | None = None,
        labels: Tensor | None = None, shift_labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0, num_items_in_batch: int | Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Logits; see `QwenVLModel.forward`. `labels` are unshifted, as transformers has it, `shift_labels` are not.

        The loss is the mean over the learned tokens, or their sum over `num_items_in_batch`.
        """
        hidden = self._embed(input_ids, inputs_embeds, pixel_values)
        past = self._cache_for(past_key_values if cache is None else cache, use_cache)
        read = self._read(hidden, attention_mask, position_ids, past, output_hidden_states, output_attentions)
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.llm.head(read.last_hidden_state[:, kept])
        output = CausalLMOutputWithPast(
            loss=_loss(logits, labels, shift_labels, num_items_in_batch),
            logits=logits,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
            **{CACHE: getattr(read, CACHE)},
        )
        return self._returned(output, return_dict)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; images are shown with the prompt, to an assistant model too, and not again."""
        kwargs["inputs_embeds"] = inputs_embeds
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        past = inputs.get(CACHE)
        prompt = kwargs.get("is_first_iteration") or past is None or int(past.get_seq_length()) == 0
        inputs["pixel_values"] = kwargs.get("pixel_values") if prompt else None
        known = inspect.signature(QwenVLForConditionalGeneration.forward).parameters
        return {
            name: value for name, value in inputs.items() if name in known
        }  # without `tokenizer` and the like

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Beams and several answers: the images of a row are repeated together, in the order of its slots."""
        pixels = kwargs.pop("pixel_values", None)
        if pixels is not None and expand_size > 1:
            if input_ids is None or input_ids.numel() == 0:
                raise ValueError(
                    "several answers to images need input_ids; inputs_embeds do not say whose they are."
                )
            each = ((input_ids == self.config.imgpad_id).sum(1) // self.config.adapter["queries"]).tolist()
            pixels = torch.cat([own.repeat(expand_size, 1, 1, 1) for own in pixels.split(each)])
        ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return ids, kwargs if pixels is None else {**kwargs, "pixel_values": pixels}


def _loss(
    logits: Tensor, labels: Tensor | None, shifted: Tensor | None, items: int | Tensor | None
) -> Tensor | None:
    """Mean over the learned tokens, or their sum over `items` where the trainer knows the count of a whole update."""
    if shifted is None:
        if labels is None:
            return None
        shifted, logits = labels[:, 1:], logits[:, :-1]
    if logits.shape[1] != shifted.shape[1]:
        raise ValueError(
            f"logits of {logits.shape[1]} tokens for labels of {shifted.shape[1]}; leave logits_to_keep out to learn."
        )
    wanted = shifted.flatten().to(logits.device)
    total = F.cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=-100, reduction="sum")
    return total / ((wanted != -100).sum().clamp(min=1) if items is None else items)


def _look_for_the_reason(name: Any, keywords: dict[str, Any]) -> None:
    """Raises ValueError for what is wrong with the files of a folder, as everywhere else in this project."""
    if name is not None and Path(name).is_dir():
        our_tensors(Path(name) / (keywords.get("subfolder") or ""))


def _official_folder(name: Any, keywords: dict[str, Any]) -> Path | None:
    """The folder of a checkpoint that is read here: official, or on integers; downloaded if it is a hub id.

    None for every other kind, which transformers reads.
    """
    if name is None:
        return None
    hub = {key: keywords[key] for key in (*HUB, "subfolder") if keywords.get(key) is not None}
    values, _ = PreTrainedConfig.get_config_dict(name, **hub)
    return folder_of(name, keywords) if is_official(values) or is_packed(values) else None
