"""Requests: JSON to typed values, every limit checked, nothing swallowed (docs/SERVING.md lists all keys).

What changes an answer is read or refused; what does not (`IGNORED`) is passed over; a key that nobody knows is told
in the log, or refused where the server is strict.
"""

from dataclasses import dataclass, field
from typing import Any

from qwenvl.generate.text import checked_stop
from qwenvl.serve.errors import invalid
from qwenvl.serve.fields import Fields
from qwenvl.serve.limits import Limits
from qwenvl.serve.messages import ImagePart, Message, read_messages

IGNORED = frozenset(
    {
        *(
            "user",
            "metadata",
            "store",
            "service_tier",
            "parallel_tool_calls",
            "reasoning_effort",
            "verbosity",
        ),
        *("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "prediction", "moderation"),
        *("add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens"),
    }
)
"""Keys that are accepted and change nothing here."""

INT64 = 2**63


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How an answer is wanted: what chat and plain completions have in common. None: not said."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None
    """Alternatives told for each token; None: no log-probabilities at all."""
    grounded: bool = False
    unknown: tuple[str, ...] = ()
    """Keys of the request that nobody knows."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Wanted):
    """POST /v1/chat/completions."""

    messages: tuple[Message, ...]
    continued: bool = False

    @property
    def answers(self) -> int:
        """How many are written."""
        return self.n

    @property
    def images(self) -> int:
        """How many are shown."""
        return sum(isinstance(part, ImagePart) for message in self.messages for part in message.parts)


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(Wanted):
    """POST /v1/completions."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool = False
    images: int = field(default=0, init=False)

    @property
    def answers(self) -> int:
        """How many are written."""
        return self.n * len(self.prompts)


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """POST /tokenize: a text, or messages."""

    model: str | None
    prompt: str | None
    messages: tuple[Message, ...]
    strings: bool
    """Also the bytes of each token, as text."""


def read_chat(data: Any, limits: Limits, *, strict: bool = False) -> ChatRequest:
    """Raises ApiError 400 with one sentence."""
    given = Fields(data)
    continued = given.flag("continue_final_message") or False
    messages = read_messages(given, limits, continued=continued)
    logprobs, top = given.flag("logprobs"), given.integer("top_logprobs", 0, limits.top_logprobs)
    if top and not logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
    form = given.inside("response_format")
    grounded = _response_format(form) if form else False
    _no_tools(given, limits)
    modalities = given.items("modalities", 8, "words")
    if modalities is not None and modalities != ["text"]:
        raise given.refuse("modalities", modalities, '["text"]; this model only writes')
    for name in ("audio", "web_search_options"):
        if given.take(name) is not None:
            raise invalid(f"{name} is not supported: this model only writes; leave it out.", name)
    wanted = _wanted(given, limits, strict, grounded=grounded, top_logprobs=(top or 0) if logprobs else None)
    return ChatRequest(**wanted, messages=messages, continued=continued)


def read_completion(data: Any, limits: Limits, *, strict: bool = False) -> CompletionRequest:
    """Raises ApiError 400 with one sentence."""
    given = Fields(data)
    prompts = _prompts(given, limits)
    top = given.integer("logprobs", 0, limits.top_logprobs)
    echo = given.flag("echo") or False
    if echo and top is not None:
        raise invalid("echo with logprobs is not supported: no probabilities of a prompt are kept.", "echo")
    if given.take("suffix"):
        raise invalid("suffix is not supported: this model writes forward only.", "suffix")
    best = given.integer("best_of", 1, limits.answers)
    wanted = _wanted(given, limits, strict, grounded=False, top_logprobs=top)
    if best is not None and best != wanted["n"]:
        raise invalid("best_of is not supported; ask for n answers and choose.", "best_of")
    if len(prompts) * wanted["n"] > limits.answers:
        raise invalid(
            f"{len(prompts)} prompts with n = {wanted['n']} make {len(prompts) * wanted['n']} answers; "
            f"at most {limits.answers} are written for one request.",
            "n",
        )
    return CompletionRequest(**wanted, prompts=prompts, echo=echo)


def read_tokenize(data: Any, limits: Limits) -> TokenizeRequest:
    """Raises ApiError 400 with one sentence."""
    given = Fields(data)
    prompt, messages = given.text("prompt"), given.has("messages")
    if (prompt is None) != messages:
        raise invalid("Give either prompt or messages.", "prompt")
    if prompt is not None and len(prompt) > limits.characters:
        raise invalid(f"prompt is longer than {limits.characters:,} characters.", "prompt")
    return TokenizeRequest(
        model=given.text("model"),
        prompt=prompt,
        messages=read_messages(given, limits) if messages else (),
        strings=given.flag("return_token_strs") or False,
    )


# === Parts ===


def _wanted(
    given: Fields, limits: Limits, strict: bool, *, grounded: bool, top_logprobs: int | None
) -> dict[str, Any]:
    """The fields of `Wanted`; what is left of `given` then is unknown."""
    own = given.inside("qwenvl")
    newer, older = (given.integer(name, 1, 2**31) for name in ("max_completion_tokens", "max_tokens"))
    stream = given.flag("stream") or False
    options = given.inside("stream_options")
    if options is not None and not stream:
        raise invalid("stream_options needs stream to be true; leave it out otherwise.", "stream_options")
    include_usage = options is not None and bool(options.flag("include_usage"))
    own_grounded = own is not None and bool(own.flag("grounded"))
    wanted = {
        "model": given.text("model"),
        "max_tokens": newer if newer is not None else older,
        "min_tokens": given.integer("min_tokens", 0, limits.tokens) or 0,
        "temperature": given.number("temperature", 0, 2),
        "top_p": given.number("top_p", 0, 1),
        "top_k": _top_k(given),
        "min_p": given.number("min_p", 0, 1),
        "repetition_penalty": given.number("repetition_penalty", 0, 10, above=True),
        "frequency_penalty": given.number("frequency_penalty", -2, 2) or 0.0,
        "presence_penalty": given.number("presence_penalty", -2, 2) or 0.0,
        "logit_bias": _logit_bias(given, limits),
        "seed": given.integer("seed", -INT64, INT64 - 1),
        "stop": _stop(given, limits),
        "n": given.integer("n", 1, limits.answers) or 1,
        "stream": stream,
        "include_usage": include_usage,
        "top_logprobs": top_logprobs,
        "grounded": grounded or own_grounded,
    }
    if given.flag("ignore_eos"):
        wanted["min_tokens"] = limits.tokens
    unknown = [name for name in given.unread() if name not in IGNORED]
    if len(unknown) > limits.unknown_keys:
        raise invalid(
            f"The request has {len(unknown)} keys that are unknown here; at most {limits.unknown_keys} are ignored."
        )
    if strict and unknown:
        raise invalid(
            f"The key {unknown[0][:60]!r} is unknown; this server was started with --strict.", unknown[0][:60]
        )
    return {**wanted, "unknown": tuple(unknown)}


def _top_k(given: Fields) -> int | None:
    value = given.integer("top_k", -1, 2**31)
    return 0 if value == -1 else value  # vLLM's clients write -1 for all


def _stop(given: Fields, limits: Limits) -> tuple[str, ...]:
    value = given.take("stop")
    strings = [value] if isinstance(value, str) else value
    if strings in (None, [], [""]):
        return ()
    if not isinstance(strings, list) or not all(isinstance(each, str) and each for each in strings):
        raise given.refuse("stop", value, "a string or a list of strings, none of them empty")
    if len(strings) > limits.stops or max(map(len, strings)) > limits.stop_characters:
        raise invalid(
            f"stop takes at most {limits.stops} strings of at most {limits.stop_characters} characters.",
            "stop",
        )
    try:
        return tuple(dict.fromkeys(checked_stop(strings)))
    except ValueError as error:
        raise invalid(str(error), "stop") from None


def _logit_bias(given: Fields, limits: Limits) -> tuple[tuple[int, float], ...]:
    inner = given.inside("logit_bias")
    if inner is None:
        return ()
    names = inner.rest()
    if len(names) > limits.logit_biases:
        raise invalid(
            f"logit_bias has {len(names)} entries; at most {limits.logit_biases} are taken.", "logit_bias"
        )
    if wrong := [name for name in names if not (name.isascii() and name.isdigit() and len(name) <= 9)]:
        raise invalid(f"logit_bias has the key {wrong[0][:60]!r}; expected ids of tokens.", "logit_bias")
    return tuple((int(name), inner.number(name, -100, 100) or 0.0) for name in names)


def _response_format(form: Fields) -> bool:
    """Whether boxes are asked for; JSON is refused, because nothing here could promise it."""
    kind = form.take("type")
    if kind in ("json_object", "json_schema"):
        raise invalid(
            f"response_format {kind} is not supported: this model writes text and boxes; boxes come as data under "
            'message.qwenvl, and {"type": "boxes"} lets no broken one be written.',
            "response_format",
        )
    if kind not in ("text", "boxes"):
        raise form.refuse("type", kind, "text or boxes")
    return kind == "boxes"


def _no_tools(given: Fields, limits: Limits) -> None:
    for name, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        tools = given.items(name, limits.parts, name)
        chosen = given.take(choice)
        if chosen not in (None, "none", "auto"):
            raise given.refuse(
                choice, chosen, '"none" or "auto": this model has not learned to call any tool'
            )
        if tools and chosen != "none":
            raise invalid(
                f"{name} are not supported: this model has not learned to call any; leave them out.", name
            )


def _prompts(given: Fields, limits: Limits) -> tuple[str | tuple[int, ...], ...]:
    value = given.take("prompt")
    many = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    prompts: list[str | tuple[int, ...]] = []
    for each in many:
        if isinstance(each, str) and each:
            if len(each) > limits.characters:
                raise invalid(f"prompt is longer than {limits.characters:,} characters.", "prompt")
            prompts.append(each)
        elif isinstance(each, list) and each and all(type(token) is int for token in each):
            if len(each) > limits.characters:
                raise invalid(f"prompt has more than {limits.characters:,} ids.", "prompt")
            prompts.append(tuple(each))
        else:
            raise given.refuse("prompt", each, "a text, ids of tokens, or a list of such, none of them empty")
    if len(prompts) > limits.answers:
        raise invalid(f"prompt has {len(prompts)} texts; at most {limits.answers} are taken.", "prompt")
    return tuple(prompts)
