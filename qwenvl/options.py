"""How a checkpoint is asked: the format of its prompts, and what a caller may choose for an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from qwenvl.config import from_dict
from qwenvl.generate.sampling import GREEDY, SamplingConfig
from qwenvl.markup import SYSTEM
from qwenvl.parsing import read_json

RELEASED = SamplingConfig(greedy=False, top_p=0.3)
"""How Qwen-VL-Chat draws."""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a checkpoint wants to be asked: what its generation_config.json says, the release's values otherwise."""

    chat_format: str = "chatml"
    """`chatml` for chat models; `raw` for base models, which go on writing behind the prompt."""
    max_new_tokens: int = 512
    max_window: int = 6144
    """Tokens of dialogue to remember; see `markup.fit_window`."""
    sampling: SamplingConfig = RELEASED
    """Used when asked to sample; answers are greedy otherwise."""

    def __post_init__(self) -> None:
        if self.chat_format not in ("chatml", "raw"):
            raise ValueError(f"chat_format is {self.chat_format!r}; expected 'chatml' or 'raw'.")

    @staticmethod
    def of(values: Any, where: str = "generation_config.json") -> "PromptFormat":
        """From the values of a generation_config.json; keys without a meaning here and nulls are passed over.

        Raises ValueError for a value of another type, named with `where` it was read.
        """
        if not isinstance(values, Mapping):
            raise ValueError(
                f"{where} holds {type(values).__name__}; expected an object. Copy it from its source."
            )
        names = {
            **{
                "chat_format": "chat_format",
                "max_new_tokens": "max_new_tokens",
                "max_window_size": "max_window",
            },
            **{name: name for name in ("temperature", "top_k", "top_p", "repetition_penalty")},
        }
        said = {ours: values[name] for name, ours in names.items() if values.get(name) is not None}
        sampling = {"greedy": False, "top_p": RELEASED.top_p}
        sampling |= {name: said.pop(name) for name in [*said] if name in SamplingConfig.__dataclass_fields__}
        return from_dict(PromptFormat, {**said, "sampling": sampling}, where)

    @staticmethod
    def read(place: Path) -> "PromptFormat":
        """What the generation_config.json of a checkpoint's folder says, the release's values without one."""
        settings = place / "generation_config.json"
        return PromptFormat.of(read_json(settings), str(settings)) if settings.exists() else PromptFormat()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be asked for besides the question. Answers are greedy unless something here asks for sampling."""

    grounded: bool = False
    """Write under the grammar of `generate.grammar`: no broken tag, no box that is none."""
    sample: bool | None = None
    """Draw tokens instead of taking the likeliest. None: draw where `temperature`, `top_k` or `top_p` is given."""
    temperature: float | None = None
    """Logits are divided by it; 0 takes the likeliest token. None, here and below: what the checkpoint says."""
    top_k: int | None = None
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together reach this probability."""
    repetition_penalty: float | None = None
    """Scores of tokens seen before are divided by it when positive, multiplied when negative."""
    seed: int = 0
    """All that draws depend on besides the dialogue."""
    max_new_tokens: int | None = None
    """Most tokens of the answer."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    system: str = SYSTEM
    """System message (ChatML only)."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; expected strings, none of them empty, such as ['\\n'].")
        drawn = [name for name in ("temperature", "top_k", "top_p") if getattr(self, name) is not None]
        if self.sample is False and drawn and self.temperature != 0:
            raise ValueError(f"sample is False, so {drawn[0]} has no effect; leave one of them out.")
        if self.sample and self.temperature == 0:
            raise ValueError(
                "temperature is 0, which takes the likeliest token; leave sample out, or raise it."
            )

    def sampling(self, own: SamplingConfig) -> SamplingConfig:
        """How tokens are chosen, given the checkpoint's own values. Raises ValueError for values out of range."""
        draws: dict[str, Any] = {
            n: v for n in ("temperature", "top_k", "top_p") if (v := getattr(self, n)) is not None
        }
        penalty: dict[str, Any] = {}
        if self.repetition_penalty is not None:
            penalty["repetition_penalty"] = self.repetition_penalty
        if self.temperature == 0 or not (draws if self.sample is None else self.sample):
            return replace(GREEDY, **penalty)
        return replace(own, greedy=False, **draws, **penalty)


class OptionValues(TypedDict, total=False):
    """The fields of `Options` as keyword arguments of `ask` and its siblings."""

    grounded: bool
    sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int
    max_new_tokens: int | None
    stop: str | Sequence[str]
    system: str


def changed(options: Options | None, changes: Mapping[str, Any]) -> Options:
    """The options with these fields replaced. Raises ValueError for a name that is no option."""
    if unknown := [name for name in changes if name not in Options.__dataclass_fields__]:
        known = ", ".join(Options.__dataclass_fields__)
        raise ValueError(f"there is no option {unknown[0]!r}; known options: {known}.")
    given = dict(changes)
    if "stop" in given:
        given["stop"] = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
    return replace(options or Options(), **given)
