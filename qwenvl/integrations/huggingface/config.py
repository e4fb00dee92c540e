"""`ModelConfig` as transformers wants it, read from our folders and from official ones alike."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from qwenvl.checkpoint.folder import MODEL_TYPE
from qwenvl.checkpoint.layers import SETTING
from qwenvl.checkpoint.official import from_official, is_official
from qwenvl.config import ModelConfig
from qwenvl.files import atomic
from qwenvl.tokenizer import SPECIALS

ARCHITECTURE = "QwenVLForConditionalGeneration"
"""The class that `architectures` names; `transformers serve` and TRL look it up."""

PARTS = ("vision", "adapter", "llm")

INITIALIZER_RANGE = 0.02
"""Standard deviation of new matrices, as in the release: what a checkpoint lacks starts so."""

DERIVED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "image_token_id", "tie_word_embeddings", "model_type"),
)
"""What others write beside the parts and what follows from them: never read, the parts say it."""

CARRIED = ("architectures", "auto_map", "dtype", "quantization_config", "transformers_version")
"""Keys of config.json that are not the model's shape but are kept when transformers writes the file again."""


def is_packed(values: Mapping[str, Any]) -> bool:
    """Whether the weights beside this config.json are integers in one of the layouts that `qwenvl quantize` writes."""
    said = values.get(SETTING)
    return isinstance(said, Mapping) and said.get("quant_method") in ("gptq", "compressed-tensors")


class QwenVLConfig(PreTrainedConfig):
    """The three parts as plain values; `shape` is the typed original."""

    __no_type_check__ = True  # the jaxtyping hook would close __init__ to keys that only transformers knows
    model_type = MODEL_TYPE

    def __init__(
        self,
        *,
        vision: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        llm: dict[str, Any] | None = None,
        imgpad_id: int | None = None,
        use_cache: bool = True,
        initializer_range: float = INITIALIZER_RANGE,
        architectures: list[str] | None = None,
        **others: Any,
    ) -> None:
        default = ModelConfig().to_dict()
        self.vision: dict[str, Any]
        self.adapter: dict[str, Any]
        self.llm: dict[str, Any]
        for name, part in (("vision", vision), ("adapter", adapter), ("llm", llm)):
            setattr(self, name, {**default[name], **(part or {})})
        self.imgpad_id = default["imgpad_id"] if imgpad_id is None else imgpad_id
        self.use_cache, self.initializer_range = use_cache, initializer_range
        others = {name: value for name, value in others.items() if name not in DERIVED}
        super().__init__(architectures=architectures or [ARCHITECTURE], **others)
        self.tie_word_embeddings = False

    @classmethod
    def of(cls, shape: ModelConfig) -> "QwenVLConfig":
        """The same shape for transformers."""
        return cls(**shape.to_dict())

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """From the values of a config.json of ours or of an official folder.

        Raises ValueError for an impossible shape and for another model of the type `qwen`.
        """
        values = dict(config_dict)
        if is_official(values):
            precision = values.get("dtype", values.get("torch_dtype"))
            values = {**from_official(values).to_dict(), "dtype": precision, "architectures": [ARCHITECTURE]}
        elif values.get("model_type") == OfficialConfig.model_type:
            raise ValueError(
                "config.json has model_type 'qwen' without `visual`: a Qwen without eyes; expected Qwen-VL or "
                "Qwen-VL-Chat. The text models of the first Qwen are not read here."
            )
        if is_packed(values):  # they are read as the plain weights that they mean
            del values[SETTING]
        read = super(QwenVLConfig, QwenVLConfig).from_dict.__func__(QwenVLConfig, values, **kwargs)
        (read[0] if isinstance(read, tuple) else read).shape  # noqa: B018 - an impossible shape is told now
        return read

    @property
    def shape(self) -> ModelConfig:
        """The typed original. Raises ValueError for unknown keys and impossible shapes."""
        return ModelConfig.from_dict({part: getattr(self, part) for part in (*PARTS, "imgpad_id")})

    # What generation, PEFT, pipelines and trainers ask of any language model.

    @property
    def vocab_size(self) -> int:
        """Rows of the output head."""
        return self.llm["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, rows: int) -> None:
        """Set by `resize_token_embeddings`."""
        self.llm = {**self.llm, "vocab_size": int(rows)}

    @property
    def hidden_size(self) -> int:
        """Channels per token."""
        return self.llm["hidden"]

    @property
    def intermediate_size(self) -> int:
        """Channels of the gated perceptron."""
        return self.llm["mlp_width"]

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the language model."""
        return self.llm["layers"]

    @property
    def num_attention_heads(self) -> int:
        """Heads of the language model."""
        return self.llm["heads"]

    @property
    def num_key_value_heads(self) -> int:
        """As many as there are heads."""
        return self.llm["heads"]

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def image_token_id(self) -> int:
        """Id of `<imgpad>`."""
        return self.imgpad_id

    @property
    def endoftext(self) -> int:
        """Id of `<|endoftext|>`, the padding; `<|im_start|>` and `<|im_end|>` follow it."""
        return self.imgpad_id - SPECIALS.index("<imgpad>")

    def ends(self) -> list[int]:
        """Ids that end an answer: <|endoftext|>, <|im_start|>, <|im_end|>; none where the vocabulary is made up."""
        return [each for each in range(self.endoftext, self.endoftext + 3) if each >= 0]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**super().to_dict(), **{part: getattr(self, part) for part in PARTS}}

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: the keys of our own folders and those that the ecosystem adds."""
        everything = self.to_dict()
        carried = {key: everything[key] for key in CARRIED if everything.get(key) is not None}
        if isinstance(carried.get("dtype"), torch.dtype):
            carried["dtype"] = str(carried["dtype"]).removeprefix("torch.")
        return {"model_type": MODEL_TYPE, **carried, **self.shape.to_dict()}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write config.json."""
        if push_to_hub or kwargs:
            asked = "push_to_hub" if push_to_hub else sorted(kwargs)[0]
            raise ValueError(f"{asked} is not done here; save the folder and upload it with `hf upload`.")
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        with atomic(target / "config.json") as file:
            file.write((json.dumps(self.to_diff_dict(), indent=2) + "\n").encode())


class OfficialConfig(QwenVLConfig):
    """The door for `model_type: "qwen"`: an official config.json, which becomes a `QwenVLConfig` as it is read."""

    model_type = "qwen"
