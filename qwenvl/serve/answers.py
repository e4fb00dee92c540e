"""One answer as it is written: tokens in; text that will not change, log-probabilities and boxes out.

A stream sends what `piece` returns after every token, a whole answer is what remains at the end: both are made by the
same steps, so that they are the same text. Held back is what may still change: half a character, the beginning of a
stop, and white space that may turn out to be the last.
"""

import codecs
from collections.abc import Sequence
from typing import Any

from qwenvl import markup
from qwenvl.generate.grammar import with_scores
from qwenvl.markup import Box, Quad, Segment
from qwenvl.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON cannot write."""


class Answer:
    """Feed it every token of a row in order."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        ends: Sequence[tuple[int, ...]],
        stop: Sequence[str] = (),
        strip: bool = True,
    ) -> None:
        self._tokenizer, self._ends, self._stop, self._strip = tokenizer, ends, stop, strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._written = ""
        self._sure = 0  # characters of `_written` that will not change
        self.sent = 0
        """Characters that `piece` has returned, leading white space included."""
        self._decoded = 0  # tokens whose bytes were decoded
        self._offsets: list[int] = []  # characters written when a token's bytes had been decoded
        self._told = 0  # tokens whose log-probability was returned
        self.tokens: list[Any] = []
        self.finish_reason: str | None = None
        self.cached = 0
        """Tokens of the prompt that came from the cache."""

    def feed(self, token: Any) -> None:
        """The next token; the last one has an `end`."""
        self.cached = max(self.cached, token.cached)
        self.tokens.append(token)
        self.finish_reason = token.end
        held = self._held_tokens()
        self._decode(len(self.tokens) - held)
        if token.end is None:
            begun = (
                n for text in self._stop for n in range(1, len(text)) if self._written.endswith(text[:n])
            )
            sure = len(self._written) - max(begun, default=0)
            if self._strip:
                sure = len(self._written[:sure].rstrip())
            self._sure = max(self._sure, sure)
            return
        self._written += self._decoder.decode(b"", final=True)
        found = [at for text in self._stop if (at := self._written.find(text, self._sure)) >= 0]
        if found and token.end == "stop":
            self._written = self._written[: min(found)]
        if self._strip:
            self._written = self._written.rstrip()
        self._sure = max(self._sure, len(self._written))

    def piece(self) -> tuple[str, list[Any]]:
        """Text that became sure since the last call, and the tokens that belong to it."""
        start = self.sent
        if not start and self._strip:
            start = len(self._written) - len(self._written.lstrip())
        if self._sure <= start:
            return "", []
        self.sent = self._sure
        first = self._told
        while self._told < len(self._offsets) and self._belongs(self._told):
            self._told += 1
        return self._written[start : self._sure], self.tokens[first : self._told]

    @property
    def text(self) -> str:
        """What is sure so far; at the end, the whole."""
        text = self._written[: self._sure]
        return text.lstrip() if self._strip else text

    @property
    def kept(self) -> list[Any]:
        """The tokens of `text`, without those that ended it."""
        kept = [i for i in range(len(self._offsets)) if self._belongs(i)]
        return [self.tokens[i] for i in kept]

    def segments(self) -> list[Segment]:
        """The whole as objects; boxes with the model's probability."""
        kept = self.tokens[: self._decoded]
        ids, logprobs = [token.id for token in kept], [token.logprob for token in kept]
        return with_scores(markup.parse(self.text), ids, logprobs, self._tokenizer)

    def _belongs(self, number: int) -> bool:
        """Whether a token's bytes are inside the sure text, all or the first of them."""
        starts = self._offsets[number - 1] if number else 0
        return self._offsets[number] <= self._sure or starts < self._sure == len(self._written)

    def _held_tokens(self) -> int:
        """How many of the newest tokens end the answer, or may turn out to."""
        ids = [token.id for token in self.tokens[-8:]]
        if self.finish_reason == "stop":
            return max((len(end) for end in self._ends if tuple(ids[-len(end) :]) == end), default=0)
        if self.finish_reason is not None:
            return 0
        begun = (n for end in self._ends for n in range(1, len(end)) if tuple(ids[-n:]) == end[:n])
        return max(begun, default=0)

    def _decode(self, until: int) -> None:
        for token in self.tokens[self._decoded : until]:
            self._written += self._decoder.decode(self._tokenizer.token_bytes(token.id))
            self._offsets.append(len(self._written))
        self._decoded = max(self._decoded, until)


# === What clients read ===


def chat_logprobs(tokens: Sequence[Any], top: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """As chat completions have them; probabilities are the model's own, before any warping or grammar."""
    return [
        {
            **_told(token.id, token.logprob, tokenizer),
            "top_logprobs": [_told(each, logprob, tokenizer) for each, logprob in token.top[:top]],
        }
        for token in tokens
    ]


def plain_logprobs(tokens: Sequence[Any], top: int, tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """As plain completions have them; `offset`: characters before the first of these tokens."""
    texts = [_text(token.id, tokenizer) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [max(token.logprob, LOWEST) for token in tokens],
        "top_logprobs": [
            {_text(each, tokenizer): max(logprob, LOWEST) for each, logprob in token.top[:top]}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def _told(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "token": _text(token, tokenizer),
        "logprob": max(logprob, LOWEST),
        "bytes": list(tokenizer.token_bytes(token)),
    }


def _text(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def boxes(segments: Sequence[Segment], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Boxes and quads as data, in thousandths and in pixels of the latest image (`sizes`: width, height of each)."""
    found: dict[str, Any] = {"boxes": [], "quads": []}
    size = sizes[-1] if sizes else None
    for segment in segments:
        if not isinstance(segment, Box | Quad):
            continue
        said: dict[str, Any] = {"label": segment.label}
        if isinstance(segment, Box):
            said |= {"x1": segment.x1, "y1": segment.y1, "x2": segment.x2, "y2": segment.y2}
        else:
            said["points"] = [list(point) for point in segment.points]
        said["image"] = len(sizes) - 1 if sizes else None
        said["pixels"] = None if size is None else _pixels(segment, size)
        said["score"] = None if segment.score is None else round(segment.score, 4)
        found["boxes" if isinstance(segment, Box) else "quads"].append(said)
    return found


def _pixels(segment: Box | Quad, size: tuple[int, int]) -> list[Any]:
    found = segment.to_pixels(*size)
    if isinstance(segment, Box):
        return [round(value, 2) for value in found]  # type: ignore[arg-type]
    return [[round(x, 2), round(y, 2)] for x, y in found]  # type: ignore[misc]
