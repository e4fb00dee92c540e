"""One answer as it is written: tokens in; text that will not change, log-probabilities and boxes out.

A stream sends what `piece` returns after every token, a whole answer is what remains at the end: both are made by the
same steps (`generate.text`), so that they are the same text.
"""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from qwenvl import markup
from qwenvl.generate.grammar import with_scores
from qwenvl.generate.text import TextDecoder
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
        self._tokenizer, self._ends, self._strip = tokenizer, ends, strip
        self._decoder = TextDecoder(tokenizer, stop_ids=ends, stop=stop, strip=strip)
        self._fresh = ""  # text that `piece` has not returned
        self._sure = 0  # bytes of the answer that are text for good, white space before it included
        self._reached = 0  # tokens that `reached` has returned
        self._bytes = self._begun = 0  # bytes and characters of these
        self._characters = getincrementaldecoder("utf-8")("replace")
        self.tokens: list[Any] = []
        self.finish_reason: str | None = None
        self.cached = 0
        """Tokens of the prompt that came from the cache."""

    def feed(self, tokens: Sequence[Any]) -> None:
        """The next tokens, one at least; the last of all has an `end`."""
        self.cached = max(self.cached, tokens[-1].cached)
        self.tokens += tokens
        self.finish_reason = tokens[-1].end
        text = self._decoder.push(token.id for token in tokens)
        if self.finish_reason is not None:
            text += self._decoder.finish()
        if text and not self._sure and self._strip:
            self._sure = self._space()
        self._sure += len(text.encode())
        self._fresh += text

    def piece(self) -> str:
        """Text that became sure since the last call."""
        text, self._fresh = self._fresh, ""
        return text

    def reached(self) -> tuple[list[Any], list[int]]:
        """The tokens up to the end of the sure text that were not returned yet, and where in the text each begins.

        One that reaches beyond the end belongs where it begins, once the answer is over; one that begins inside a
        character, where that begins. White space that the text was stripped of counts.
        """
        start, places = self._reached, []
        while self._reached < len(self.tokens):
            spelled = self._tokenizer.token_bytes(self.tokens[self._reached].id)
            over = self._bytes + len(spelled) > self._sure
            if self._bytes >= self._sure or (over and self.finish_reason is None):
                break
            places.append(self._begun)
            self._begun += len(self._characters.decode(spelled))
            self._bytes += len(spelled)
            self._reached += 1
        return self.tokens[start : self._reached], places

    @property
    def text(self) -> str:
        """What is sure so far; at the end, the whole."""
        return self._decoder.text

    def segments(self) -> list[Segment]:
        """The whole as objects; boxes with the model's probability."""
        ids, logprobs = [token.id for token in self.tokens], [token.logprob for token in self.tokens]
        return with_scores(markup.parse(self.text), ids, logprobs, self._tokenizer)

    def _space(self) -> int:
        """Bytes of white space that the text was stripped of at its beginning."""
        spelled = b"".join(self._tokenizer.token_bytes(token.id) for token in self.tokens)
        text = spelled.decode("utf-8", "replace")
        return len(text[: len(text) - len(text.lstrip())].encode())


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


def plain_logprobs(
    tokens: Sequence[Any], places: Sequence[int], top: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """As plain completions have them; `places`: characters before each token."""
    return {
        "tokens": [_text(token.id, tokenizer) for token in tokens],
        "token_logprobs": [max(token.logprob, LOWEST) for token in tokens],
        "top_logprobs": [
            {_text(each, tokenizer): max(logprob, LOWEST) for each, logprob in token.top[:top]}
            for token in tokens
        ],
        "text_offset": list(places),
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
