"""Connections: uvicorn's HTTP/1.1 protocol (httptools), with limits before a request is whole.

uvicorn bounds neither the number of headers nor the time that they take, nor how long a client leaves its socket full.
Here all are, a connection that says nothing is closed, and what is no HTTP is answered in the same JSON as every other
error. A scope's extension `qwenvl.connection` says whether its client was too slow.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from qwenvl.serve.errors import ApiError
from qwenvl.serve.limits import Limits


class _BeyondLimit(Exception):
    """Ends the parsing of a request; httptools wraps it."""


class Connection(HttpToolsProtocol):
    """One connection; a subclass says under which self.limits."""

    limits: Limits
    _refusal: ApiError | None = None
    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _bytes = 0

    def connection_made(self, transport: Any) -> None:
        """See uvicorn."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See uvicorn."""
        self._headers_are_there()
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See uvicorn. One clock for a full socket: a timeout around every event would cost more than the event."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.write_seconds, self._too_slow)

    def resume_writing(self) -> None:
        """See uvicorn."""
        self._is_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """See uvicorn."""
        if self._refusal is None and self.parser is not None:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """See uvicorn."""
        super().on_message_begin()
        self._bytes = 0
        self.scope["extensions"] = {"qwenvl.connection": {"slow": False}}
        if self._waiting is None:
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        """See uvicorn."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """See uvicorn."""
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """See uvicorn."""
        self._headers_are_there()
        if len(self.pipeline) >= 8:
            self._refuse(ApiError(429, "Too many requests are in the pipeline of this connection."))
        super().on_headers_complete()

    def timeout_keep_alive_handler(self) -> None:
        """See uvicorn."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn."""
        error = self._refusal or ApiError(400, "This is no HTTP/1.1 request.", code="invalid_http")
        self._refusal = error
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started or self.pipeline:
                self.transport.abort()  # another answer is on its way: nothing may be written into it
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error.encoded()
        head = [STATUS_LINE[error.status], b"content-type: application/json\r\nconnection: close\r\n"]
        head += [f"{name}: {value}\r\n".encode() for name, value in error.headers.items()]
        self.transport.write(b"".join([*head, b"content-length: %d\r\n\r\n" % len(body), body]))
        self.transport.close()

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self.limits.header_bytes or len(self.headers) > self.limits.headers:
            self._refuse(
                ApiError(
                    431,
                    f"The headers are too large; at most {self.limits.headers} lines and {self.limits.header_bytes:,} "
                    "bytes are taken.",
                    code="headers_too_large",
                )
            )

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        raise _BeyondLimit

    def _expect_headers(self) -> None:
        self._waiting = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _headers_are_there(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        self.scope["extensions"]["qwenvl.connection"]["slow"] = True
        self.transport.abort()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def protocol(limits: Limits) -> type[Connection]:
    """uvicorn's protocol under these limits: what its option `http` takes."""
    return type("Connection", (Connection,), {"limits": limits})
