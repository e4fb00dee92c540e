"""The vocabulary as vLLM asks for it: a prompt is read with its control symbols, a message's text never is.

vLLM spells messages as one string and encodes it again. Control symbols that a message spells are guarded on the way
(`huggingface.prompt`), so they come back as the characters they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl.images import RGB
from qwenvl.integrations.huggingface.hub import folder_of
from qwenvl.integrations.huggingface.processor import QwenVLProcessor
from qwenvl.integrations.huggingface.prompt import read_prompt
from qwenvl.integrations.huggingface.tokenizer import TAGS, QwenVLTokenizer
from qwenvl.markup import Image

TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% endfor %}{% endfor %}"
    "{#- ChatML, spelled from objects by PromptTokenizer.apply_chat_template; the loops say that it takes parts. -#}"
)
"""Stands where a template in Jinja would."""


class PromptTokenizer(QwenVLTokenizer):
    """Our tokenizer for vLLM: `encode` reads prompts, `apply_chat_template` spells them."""

    chat_template = TEMPLATE
    chatml = True
    ground: RGB | tuple[()] = ()
    """What stands behind transparency, which the folder says beside how it is asked."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer of a folder or hub id, with vLLM's look-up tables."""
        from vllm.tokenizers.hf import get_cached_tokenizer

        hub = {"revision": kwargs.get("revision"), "cache_dir": kwargs.get("download_dir")}
        folder = folder_of(pretrained_model_name_or_path, hub, ("*.json", "*.tiktoken"))
        processor = QwenVLProcessor.from_pretrained(folder)
        tokenizer = cls(processor.tokenizer.vocab_file, truncation_side=kwargs.get("truncation_side", "left"))
        tokenizer.chatml, tokenizer.ground = processor.chatml, processor.ground
        tokenizer.chat_template = TEMPLATE
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return get_cached_tokenizer(tokenizer)

    @property
    def all_special_tokens(self) -> list[str]:
        """Symbols that an answer is written without: all but the tags of phrases and boxes."""
        return [name for name in self.core.specials if name not in TAGS]

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return [self.core.specials[name] for name in self.all_special_tokens]

    def get_added_vocab(self) -> dict[str, int]:
        """None: vLLM would set spaces around them."""
        return {}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The pieces of a prompt, its control symbols as such; an image's place is `<img></img>`."""
        places = [Image(None)] * text.count("<img></img>")
        return [self._convert_id_to_token(token) for token in read_prompt(text, places, self.core, 0).ids]

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """Raises ValueError for another template than the one there is."""
        if chat_template not in (None, TEMPLATE):
            raise ValueError("the dialogue format is the released one; expected no chat_template.")
        return TEMPLATE

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Messages as vLLM hands them over, as a prompt with places for their images, or its ids.

        Raises ValueError for tools, documents, other templates and options that are not known.
        """
        if unknown := [name for name, value in options.items() if value not in (None, False)]:
            raise ValueError(f"the dialogue format has no option {unknown[0]!r}; leave it out.")
        self.get_chat_template(chat_template)
        processor = QwenVLProcessor(self, chatml=self.chatml)
        prompt = processor.apply_chat_template(
            [{key: value for key, value in message.items() if key != "name"} for message in conversation],
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return self.encode(prompt) if tokenize else prompt
