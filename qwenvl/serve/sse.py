"""Server-sent events, made by hand: the fixed part of a chunk is encoded once, a delta costs one encoding."""

import json
from typing import Any

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would collect the answer and send it at once
}

DONE = b"data: [DONE]\n\n"

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: it keeps proxies from closing a connection on which nothing is said."""


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


READING = b": reading\n\n"
"""A comment: there is a place, and the prompt is being read."""


def queued(place: int) -> bytes:
    """A comment: the request waits; 1 is next. Clients pass comments over, the page shows them."""
    return b": queued %d\n\n" % place


def encode(value: Any) -> bytes:
    """JSON in its shortest form; a line feed cannot stand in it."""
    return _JSON.encode(value).encode("utf-8", "replace")


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + encode(value) + b"\n\n"


class Chunks:
    """The events of one stream; all have the same id, time and model, and `usage: null` where usage was asked for."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool) -> None:
        self._head = encode(head)[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def delta(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> bytes:
        """A chunk of a chat answer."""
        return self._choice({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})

    def text(self, index: int, text: str, logprobs: Any = None, finish: str | None = None) -> bytes:
        """A chunk of a plain answer."""
        return self._choice({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, which has no choice."""
        return b"data: " + self._head + b'[],"usage":' + encode(usage) + b"}\n\n"

    def _choice(self, choice: dict[str, Any]) -> bytes:
        return b"data: " + self._head + b"[" + encode(choice) + b"]" + self._tail
