"""The vocabulary for transformers 5. Text never becomes markup: what a text spells stays ordinary characters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from qwenvl.checkpoint.folder import MODEL_TYPE, read_config, settings
from qwenvl.checkpoint.official import is_official
from qwenvl.tokenizer import SPECIALS, VOCABULARY_FILE, Tokenizer

TAGS = frozenset({"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"})
"""Symbols that `skip_special_tokens` keeps: without them the boxes of an answer could not be read."""


class QwenVLTokenizer(PreTrainedTokenizer):
    """Our `Tokenizer` (as `core`) under the interface of transformers; pads on the left unless told otherwise."""

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 - the name and form are transformers' own
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.core = Tokenizer.load(vocab_file)
        _require_own(self.core, Path(vocab_file).parent)
        self.vocab_file = vocab_file
        self._added_tokens_decoder = {
            token: AddedToken(name, special=True, normalized=False)
            for name, token in self.core.specials.items()
        }
        kwargs.pop("added_tokens_decoder", None)
        fixed = {"eos_token": SPECIALS[0], "pad_token": SPECIALS[0], "special_tokens_pattern": "none"}
        super().__init__(**{"padding_side": "left", **kwargs, **fixed})

    @property
    def vocab_size(self) -> int:
        """Byte pairs, without the control symbols."""
        return self.core.n_ranks

    def get_vocab(self) -> dict[str, int]:
        """Every token, its bytes spelled as latin-1, and every control symbol."""
        pairs = {self._convert_id_to_token(token): token for token in range(self.core.n_ranks)}
        return {**pairs, **self.core.specials}

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Raises ValueError for a token that is not there yet: the vocabulary is the file's."""
        asked = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        self._refuse_new(str(each) for each in asked)
        return 0

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> int:
        """Raises ValueError for a token that is not there yet."""
        values = [value for value in special_tokens_dict.values() if value is not None]
        asked = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
        self._refuse_new(str(each) for each in asked)
        return 0

    def _refuse_new(self, asked: Any) -> None:
        if new := [each for each in asked if each not in self.core.specials]:
            raise ValueError(
                f"the token {new[0]!r} cannot be added: the vocabulary is {VOCABULARY_FILE} and its control symbols; "
                "use one of <|extra_0|> to <|extra_204|>, which are there for that."
            )

    def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("return_offsets_mapping"):
            raise NotImplementedError(
                "return_offsets_mapping is not available: the ids are of bytes, and may end within a character."
            )
        return super()._encode_plus(*args, **kwargs)

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The pieces of a text; control symbols that it spells are ordinary characters."""
        return [self._convert_id_to_token(token) for token in self.core.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self.core.endoftext)

    def _convert_id_to_token(self, index: int) -> str:
        return self.core.token_bytes(index).decode("latin-1")

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of control symbols by name, of pieces by their bytes; None for what is neither."""
        if tokens is None or isinstance(tokens, str):
            return self._ids.get(tokens)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @property
    def _ids(self) -> Mapping[Any, int]:
        if not hasattr(self, "_vocabulary"):
            self._vocabulary = self.get_vocab()
        return self._vocabulary

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces."""
        return b"".join(token.encode("latin-1") for token in tokens).decode("utf-8", "replace")

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        if skip_special_tokens:
            kept = {self.core.specials[tag] for tag in TAGS}
            ids = [token for token in ids if token < self.core.n_ranks or token in kept]
        return self.core.decode(ids)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write qwen.tiktoken."""
        file = self.core.save(save_directory)
        return (
            str(
                file if not filename_prefix else file.rename(file.with_name(f"{filename_prefix}-{file.name}"))
            ),
        )


class QWenTokenizer(QwenVLTokenizer):
    """Under the name that official folders give their tokenizer's class."""


def _require_own(core: Tokenizer, folder: Path) -> None:
    """Raises ValueError for a vocabulary that is not that of the model beside it."""
    values = settings(folder) if (folder / "config.json").is_file() else None
    if isinstance(values, dict) and (is_official(values) or values.get("model_type") == MODEL_TYPE):
        core.require_own(read_config(folder).imgpad_id)
