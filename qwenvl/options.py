"""How a checkpoint is asked: the format of its prompts, and what a caller may choose for an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image as pillow

from qwenvl.config import from_dict
from qwenvl.generate.choosing import TOP_LOGPROBS
from qwenvl.generate.sampling import GREEDY, SamplingConfig, check_whole, checked_bias
from qwenvl.generate.text import checked_stop
from qwenvl.images import Source, open_image, rgb
from qwenvl.markup import SYSTEM
from qwenvl.parsing import read_json

DRAWS = ("temperature", "top_k", "top_p", "min_p")
"""Options that ask for a draw."""

PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
"""Options that also move the likeliest token."""

ANSWERS = 8
"""Most answers to one question."""

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
    ground: tuple[int, ...] = ()
    """Red, green and blue of what stood behind transparency in training; empty: alpha is dropped, as officially."""

    def __post_init__(self) -> None:
        rgb(self.ground)
        if self.chat_format not in ("chatml", "raw"):
            raise ValueError(f"chat_format is {self.chat_format!r}; expected 'chatml' or 'raw'.")

    def opened(self, source: Source) -> pillow.Image:
        """The image in RGB as this checkpoint sees it. Raises ValueError as `images.open_image` does."""
        return open_image(source, ground=rgb(self.ground))

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
            **{name: name for name in (*DRAWS, "repetition_penalty")},
        }
        said = {ours: values[name] for name, ours in names.items() if values.get(name) is not None}
        said["ground"] = rgb(values.get("image_ground"), f"image_ground of {where}") or ()
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
    """Draw tokens instead of taking the likeliest. None: draw where one of `DRAWS` is given."""
    temperature: float | None = None
    """Logits are divided by it; 0 takes the likeliest token. None, here and below: what the checkpoint says."""
    top_k: int | None = None
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together reach this probability."""
    min_p: float | None = None
    """Draw from the tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Scores of tokens seen before are divided by it when positive, multiplied when negative."""
    frequency_penalty: float | None = None
    """Taken off the score of a token for each time it stands in the answer; -2 to 2."""
    presence_penalty: float | None = None
    """Taken off the score of every token that stands in the answer; -2 to 2."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of an id and what is added to its score, from -100, which bans it, to 100. `ask` takes a dict."""
    seed: int = 0
    """All that draws depend on besides the dialogue."""
    max_new_tokens: int | None = None
    """Most tokens of the answer."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    n: int = 1
    """Answers to write, 1 to 8; the others are the `alternatives` of the first."""
    top_logprobs: int = 0
    """Likeliest tokens to report for each token of the answer, 0 to 20."""
    system: str = SYSTEM
    """System message (ChatML only)."""

    def __post_init__(self) -> None:
        checked_stop(self.stop)
        least, most = -(2**63), 2**64 - 1
        whole = {"seed": (least, most), "n": (1, ANSWERS), "top_logprobs": (0, TOP_LOGPROBS)}
        for name, (low, high) in whole.items():
            check_whole(name, getattr(self, name), low, high)
        if self.max_new_tokens is not None:
            check_whole("max_new_tokens", self.max_new_tokens, 1, 2**31, "at least one token")
        self.sampling(SamplingConfig(greedy=False))
        drawn = [name for name in DRAWS if getattr(self, name) is not None]
        if self.sample is False and drawn and self.temperature != 0:
            raise ValueError(f"sample is False, so {drawn[0]} has no effect; leave one of them out.")
        if self.sample and self.temperature == 0:
            raise ValueError(
                "temperature is 0, which takes the likeliest token; leave sample out, or raise it."
            )

    def sampling(self, own: SamplingConfig) -> SamplingConfig:
        """How tokens are chosen, given the checkpoint's own values."""
        given: dict[str, Any] = {
            name: value for name in (*DRAWS, *PENALTIES) if (value := getattr(self, name)) is not None
        }
        given["logit_bias"] = self.logit_bias
        draws = any(name in given for name in DRAWS) if self.sample is None else self.sample
        greedy = not isinstance(self.temperature, bool) and self.temperature == 0
        if greedy:
            del given["temperature"]
        drawn = replace(own, greedy=False, **given)  # checks values that a greedy answer does not read, too
        if draws and not greedy:
            return drawn
        return replace(GREEDY, **{name: given[name] for name in given if name not in DRAWS})


class OptionValues(TypedDict, total=False):
    """The fields of `Options` as keyword arguments of `ask` and its siblings."""

    grounded: bool
    sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    seed: int
    max_new_tokens: int | None
    stop: str | Sequence[str]
    n: int
    top_logprobs: int
    system: str


def changed(options: Options | None, changes: Mapping[str, Any]) -> Options:
    """The options with these fields replaced. Raises ValueError for a name that is no option."""
    if unknown := [name for name in changes if name not in Options.__dataclass_fields__]:
        known = ", ".join(Options.__dataclass_fields__)
        raise ValueError(f"there is no option {unknown[0]!r}; known options: {known}.")
    given = dict(changes)
    if "stop" in given:
        given["stop"] = _several(given["stop"])
    if "logit_bias" in given:
        given["logit_bias"] = _pairs(given["logit_bias"])
    return replace(options or Options(), **given)


def _several(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    return checked_stop((stop,) if isinstance(stop, str) else stop)


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    if isinstance(bias, Mapping):
        bias = list(bias.items())
    if isinstance(bias, list | tuple):
        bias = tuple(tuple(pair) if isinstance(pair, list | tuple) else pair for pair in bias)
    return checked_bias(bias)
