"""One request and its answer: its number, its client, what the log will say, and the headers that every answer has."""

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qwenvl.serve.auth import Admitted
from qwenvl.serve.bodies import Receive, Send, drop_body
from qwenvl.serve.errors import ApiError
from qwenvl.serve.sse import encode

_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(eq=False)
class Exchange:
    """Lives in the scope of its request."""

    method: str
    path: str
    id: str
    admitted: Admitted = field(default_factory=Admitted)
    started: float = field(default_factory=time.monotonic)
    status: int | None = None
    """What was sent; None before."""
    complete: bool = False
    """Whether the last byte was sent."""
    said: dict[str, Any] = field(default_factory=dict)
    """For the log."""

    @classmethod
    def begin(cls, scope: Any) -> "Exchange":
        """A number of the client's is kept where it is short and plain."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        number = given.decode() if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        exchange = cls(scope["method"], scope["path"], number)
        scope["qwenvl"] = exchange
        return exchange

    @classmethod
    def of(cls, scope: Any) -> "Exchange":
        """The exchange that a request belongs to."""
        return scope["qwenvl"]

    def say(self, **said: Any) -> None:
        """Add to the line of the log; never text of prompts or answers."""
        self.said |= said

    @property
    def client(self) -> str:
        """The key's name."""
        return self.admitted.client

    @property
    def salt(self) -> bytes:
        """Keeps the caches of keys apart."""
        return self.admitted.salt

    def sender(self, send: Send) -> Send:
        """`send` with the headers of every answer."""
        own = {"x-request-id": self.id, "x-content-type-options": "nosniff", **self.admitted.headers}
        extra = [(name.lower().encode(), value.encode("latin-1")) for name, value in own.items()]

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.complete = True

        return sending


async def send_json(
    send: Send, value: Any, *, status: int = 200, headers: Iterable[tuple[str, str]] = ()
) -> None:
    """A whole answer in JSON."""
    body = encode(value)
    await send_whole(send, body, [("content-type", "application/json"), *headers], status=status)


async def send_whole(
    send: Send, body: bytes, headers: Iterable[tuple[str, str]], *, status: int = 200, more: bool = False
) -> None:
    """A whole answer; with `more` the connection is held for what the client still sends."""
    lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    lines.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def send_error(send: Send, receive: Receive, error: ApiError) -> None:
    """An error; before the connection of a refused body is closed, what the client is still sending is dropped."""
    closing = error.headers.get("Connection") == "close"
    headers = [("content-type", "application/json"), *error.headers.items()]
    await send_whole(send, error.encoded(), headers, status=error.status, more=closing)
    if closing:
        await drop_body(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
