"""Messages and images in, ids and pixels out: the processor for transformers 5.

`apply_chat_template` spells a dialogue as a prompt (`prompt.py`), and every prompt is read back by `__call__`: one step
and the usual two steps (template, then processor) are the same path. Arguments it does not know are refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from qwenvl.checkpoint.folder import read_config
from qwenvl.files import atomic
from qwenvl.images import preprocess, rgb
from qwenvl.integrations.huggingface.hub import folder_of
from qwenvl.integrations.huggingface.messages import image, images_of, turns_of
from qwenvl.integrations.huggingface.prompt import Prompt, read_prompt, spell_content, spell_turns
from qwenvl.integrations.huggingface.tokenizer import QwenVLTokenizer
from qwenvl.markup import Image
from qwenvl.options import PromptFormat
from qwenvl.parsing import read_json
from qwenvl.tokenizer import VOCABULARY_FILE

TEMPLATE = (
    "{#- ChatML, spelled from objects by QwenVLProcessor.apply_chat_template so that no text becomes markup; "
    "what assistants say stands in {% generation %} spans. -#}"
)
"""Stands where a template in Jinja would: trainers look there for the name of its spans."""

PROCESSOR_CONFIG = "processor_config.json"

OPTIONS: Mapping[str, Any] = {
    "padding": True,
    "max_length": None,
    "truncation": False,
    "pad_to_multiple_of": None,
    "padding_side": None,
    "return_attention_mask": True,
    "return_tensors": None,
    "add_special_tokens": True,
    "return_token_type_ids": False,
    "return_mm_token_type_ids": False,
    "return_offsets_mapping": False,
    "return_special_tokens_mask": False,
    "return_overflowing_tokens": False,
    "return_length": False,
    "verbose": True,
}
"""What `__call__` takes beside texts and images, with its defaults."""

FIXED = tuple(name for name in OPTIONS if name.startswith("return_") and OPTIONS[name] is False)
"""Options that are known and not done: asking for one is refused."""

GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "processor_kwargs")

LOADING = (
    *(
        "trust_remote_code",
        "use_fast",
        "config",
        "code_revision",
        "proxies",
        "subfolder",
        "_commit_hash",
        "task",
    ),
    *(
        "cache_dir",
        "force_download",
        "local_files_only",
        "revision",
        "token",
        "dtype",
        "torch_dtype",
        "backend",
    ),
    *("_from_auto", "_from_pipeline", "adapter_kwargs"),
)
"""What the Auto classes hand over when they load a processor; only those that lead to the folder matter here."""


ASKED = ("chat_format", "image_ground")
"""What of a folder's generation_config.json concerns a processor."""


class QwenVLProcessor(ProcessorMixin):
    """Messages and images to `input_ids`, `attention_mask` and `pixel_values`; padded as the tokenizer pads."""

    def __init__(
        self,
        tokenizer: QwenVLTokenizer,
        *,
        queries: int = 256,
        size: int = 448,
        chatml: bool = True,
        ground: Any = (),
    ) -> None:
        """`ground`: red, green and blue behind transparency; empty: alpha is dropped. Raises ValueError for others."""
        super().__init__(tokenizer)
        self.queries, self.size, self.chatml, self.ground = queries, size, chatml, rgb(ground) or ()
        self.chat_template = TEMPLATE

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "QwenVLProcessor":
        """The processor of a model folder: its vocabulary, image size and chat format. `padding_side` may be told.

        Raises ValueError for an argument without a meaning here, and for a vocabulary that is not the model's.
        """
        _refuse(kwargs, (*LOADING, "padding_side"), "from_pretrained")
        folder = folder_of(pretrained_model_name_or_path, kwargs, ("*.json", "*.tiktoken"))
        own, settings = folder / PROCESSOR_CONFIG, folder / "generation_config.json"
        known = {**_read(own), **_read(folder / "tokenizer_config.json"), **kwargs}
        if (folder / "config.json").exists() or not own.exists():
            shape = read_config(folder)
            known |= {"queries": shape.adapter.queries, "size": shape.vision.image_size}
        said = {**known, **_read(settings)}
        asked = PromptFormat.of({name: said.get(name) for name in ASKED}, str(settings))
        return cls(
            QwenVLTokenizer(str(folder / VOCABULARY_FILE), padding_side=known.get("padding_side") or "left"),
            queries=known["queries"],
            size=known["size"],
            chatml=asked.chat_format == "chatml",
            ground=asked.ground,
        )

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the vocabulary, its class, the chat format and, for a folder without config.json, size and queries."""
        _refuse({**kwargs, **({"push_to_hub": True} if push_to_hub else {})}, (), "save_pretrained")
        folder = Path(save_directory)
        vocabulary = self.tokenizer.core.save(folder)
        format_: dict[str, Any] = {"chat_format": "chatml" if self.chatml else "raw"}
        format_ |= {"image_ground": list(self.ground)} if self.ground else {}
        side = {"padding_side": self.tokenizer.padding_side}
        seen = {"queries": self.queries, "size": self.size}
        settings = folder / "generation_config.json"
        files = {
            folder / "tokenizer_config.json": {"tokenizer_class": QwenVLTokenizer.__name__, **side},
            folder / PROCESSOR_CONFIG: {"processor_class": type(self).__name__, **seen, **format_},
            settings: {**_read(settings), **format_},
        }
        for file, values in files.items():
            if values == _read(file):  # what says it already keeps its bytes
                continue
            with atomic(file) as written:
                written.write((json.dumps(values, indent=2) + "\n").encode())
        return [str(vocabulary), *map(str, files)]

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> Any:
        """A prompt or a batch of prompts; the images of one without places stand before it, as base models want them.

        `images` is one image, a list for one text, or a list of lists. A prompt is markup: `<|im_start|>` and
        `<img></img>` are symbols in it, so text of strangers belongs in messages, see `apply_chat_template`.
        Raises ValueError where texts, places and images do not match in number, and for arguments it does not know.
        """
        if videos is not None or audio is not None:
            raise ValueError("this model sees images alone; expected no `videos` and no `audio`.")
        if text is None and _is_text(images):  # called as a tokenizer is: by `generate(tokenizer=processor)`
            return self.tokenizer(images, **kwargs)
        texts = [text or ""] if text is None or isinstance(text, str) else list(text)
        if wrong := [each for each in texts if not isinstance(each, str)]:
            raise ValueError(f"a text is a {type(wrong[0]).__name__}; expected strings.")
        own = [[image(each) for each in row] for row in _per_text(images, len(texts))]
        options = _options(kwargs)
        return self._batch([self._read(*each) for each in zip(texts, own, strict=True)], options)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        images: Any = None,
        load_audio_from_video: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One dialogue or several: `{"role", "content"}`, content a text or parts of type text and image.

        An image part holds `image` (PIL, array, tensor, bytes or path), `path`, `url` (http, https, data) or `base64`;
        one that holds none makes a place for an image given apart. An assistant message's text is read for `<ref>` and
        `<box>`, as it was written by a model; a user's is not. Raises ValueError for tools and other templates, and for
        `load_audio_from_video`, which `transformers serve` always gives.
        """
        if load_audio_from_video:
            raise ValueError("this model sees images alone; expected load_audio_from_video=False.")
        if chat_template not in (None, TEMPLATE) or tools or documents:
            raise ValueError(
                "the dialogue format is the released one; expected no chat_template, tools or documents."
            )
        if not conversation:
            raise ValueError("the conversation is empty; expected at least one message.")
        many = not isinstance(conversation[0], Mapping)
        dialogues = [list(each) for each in conversation] if many else [list(conversation)]
        turns = [turns_of(dialogue, chatml=self.chatml) for dialogue in dialogues]
        opened = add_generation_prompt and not continue_final_message
        prompts = [
            spell_turns(each, opened=opened, unfinished=continue_final_message)
            if self.chatml
            else "".join(spell_content(turn.content) for turn in each)
            for each in turns
        ]
        if not tokenize:
            return prompts if many else prompts[0]
        options = _options(kwargs)
        given = [None] * len(turns) if images is None else _per_text(images, len(turns))
        images = [_filled(images_of(each), own) for each, own in zip(turns, given, strict=True)]
        rows = [self._read(*each) for each in zip(prompts, images, strict=True)]
        batch = self._batch(rows, options, answers=return_assistant_tokens_mask)
        return batch if return_dict else batch["input_ids"]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Texts of generated ids; the tags of phrases and boxes stay, `qwenvl.markup.parse` reads them."""
        return self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    def get_vocab(self) -> dict[str, int]:
        """The tokenizer's: what `generate(tokenizer=processor, stop_strings=...)` asks for."""
        return self.tokenizer.get_vocab()

    def __getattr__(self, name: str) -> Any:
        """What is asked of a tokenizer is answered by it."""
        if name.startswith("__") or "tokenizer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` gives."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _read(self, text: str, images: Sequence[Image]) -> Prompt:
        return read_prompt(text, images, self.tokenizer.core, self.queries)

    def _batch(self, rows: list[Prompt], options: Mapping[str, Any], answers: bool = False) -> BatchFeature:
        rows = [self._cut(row, options) for row in rows]
        wanted = self._width(rows, options)
        right = (options["padding_side"] or self.tokenizer.padding_side) == "right"

        def padded(values: Sequence[Any], filler: Any) -> list[Any]:
            rest = [filler] * max(0, wanted - len(values))
            return [*values, *rest] if right else [*rest, *values]

        found: dict[str, Any] = {
            "input_ids": [padded(row.ids, self.tokenizer.core.endoftext) for row in rows],
            "attention_mask": [padded([1] * len(row.ids), 0) for row in rows],
        }
        if not options["return_attention_mask"]:
            del found["attention_mask"]
        if answers:
            found["assistant_masks"] = [padded([int(each) for each in row.answered], 0) for row in rows]
        sources: list[Any] = [image.source for row in rows for image in row.images]
        pixels = [preprocess(source, self.size, ground=self.ground) for source in sources]
        if pixels:
            found["pixel_values"] = torch.from_numpy(np.stack(pixels))
        return BatchFeature(found, tensor_type=options["return_tensors"])

    def _cut(self, row: Prompt, options: Mapping[str, Any]) -> Prompt:
        """The row at most `max_length` long where truncation is asked for. Raises ValueError if an image would go."""
        limit = options["max_length"]
        if (
            options["truncation"] in (False, None, "do_not_truncate")
            or limit is None
            or len(row.ids) <= limit
        ):
            return row
        kept = slice(len(row.ids) - limit, None) if self.tokenizer.truncation_side == "left" else slice(limit)
        core, ids = self.tokenizer.core, row.ids[kept]
        if ids.count(core.imgpad) != self.queries * len(row.images):
            raise ValueError(
                f"max_length={limit} would cut an image out of a prompt of {len(row.ids)} tokens; each takes "
                f"{self.queries + 2}. Raise max_length or shorten the text."
            )
        return Prompt(ids=ids, answered=row.answered[kept], images=row.images)

    def _width(self, rows: Sequence[Prompt], options: Mapping[str, Any]) -> int:
        """Tokens that every row is padded to; 0 for rows left as they are."""
        how, multiple = options["padding"], options["pad_to_multiple_of"] or 1
        if how in (False, "do_not_pad"):
            return 0
        if how not in (True, "longest", "max_length"):
            raise ValueError(
                f"padding is {how!r}; expected True, False, 'longest', 'max_length' or 'do_not_pad'."
            )
        width = max(len(row.ids) for row in rows)
        if how == "max_length":
            if options["max_length"] is None:
                raise ValueError("padding='max_length' without max_length; give the length to pad to.")
            width = max(width, options["max_length"])
        return -(-width // multiple) * multiple


def _is_text(value: Any) -> bool:
    listed = isinstance(value, list | tuple) and len(value) > 0
    return isinstance(value, str) or (listed and all(isinstance(each, str) for each in value))


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All options, those in the groups of transformers too. Raises ValueError for unknown ones and those not done."""
    flat = {name: value for name, value in kwargs.items() if name not in GROUPS}
    for group in GROUPS:
        flat |= kwargs.get(group) or {}
    _refuse(flat, tuple(OPTIONS), "the processor")
    if asked := [name for name in FIXED if flat.get(name)]:
        raise ValueError(f"{asked[0]} is not available here; leave it out.")
    return {**OPTIONS, **flat}


def _refuse(given: Mapping[str, Any], known: Sequence[str], who: str) -> None:
    if unknown := [name for name in given if name not in known]:
        expected = ", ".join(name for name in known if not name.startswith("_")) or "no options"
        raise ValueError(f"{who} was given {unknown[0]!r}, which it does not know; expected {expected}.")


def _filled(places: Sequence[Image], given: Sequence[Any] | None) -> list[Image]:
    """The images of a dialogue, those that stand apart put in its empty places."""
    rest = [image(each) for each in given or ()]
    if given is not None and len(rest) == len(places):
        return rest
    empty = sum(place.source is None for place in places)
    if empty != len(rest):
        raise ValueError(
            f"the messages leave {empty} places for images and {len(rest)} are given; give as many."
        )
    waiting = iter(rest)
    return [next(waiting) if place.source is None else place for place in places]


def _per_text(images: Any, texts: int) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(texts)]
    if not isinstance(images, list | tuple):
        images = [images]
    if not any(isinstance(each, list | tuple) for each in images):
        images = [list(images)] if texts == 1 else [[each] for each in images]
    if len(images) != texts:
        raise ValueError(f"{len(images)} lists of images for {texts} texts; give one list each.")
    rows = [[] if each is None else each if isinstance(each, list | tuple) else [each] for each in images]
    return [[one for one in row if one is not None] for row in rows]
