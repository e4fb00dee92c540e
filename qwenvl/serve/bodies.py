"""Bodies of requests, read within limits, and clients that go away while their answer is made."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from qwenvl.serve.errors import ApiError, busy
from qwenvl.serve.limits import Limits

Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]

SMALL = 1 << 20
"""Bytes of a body that is taken however many there are."""

LINGER = 2.0
"""Seconds in which the rest of a refused body is read and dropped: a client that is still sending would not see why."""

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection: nobody reads an answer."""


class BodyTooLarge(ApiError):
    """413, said before the body has been read."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(
            413,
            f"The body is larger than {limits.body_bytes:,} bytes, the limit here; send less text or smaller images.",
            code="body_too_large",
            headers={"Connection": "close"},
        )


class Bodies:
    """How many bytes the bodies of all unfinished requests have together, those that are still coming included.

    Five hundred clients that hold a body of 32 MB back a byte before its end would take 16 GB otherwise. Small ones
    are always taken, so that large ones keep nobody out.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """What is called with every number of bytes that came; it raises ApiError 429 where they are too many."""
        own = 0

        def grow(count: int) -> None:
            nonlocal own
            if own + count > SMALL and self.held + count > self._limits.bodies_bytes:
                error = busy("Too many large requests are on their way; try again later.", seconds=5)
                error.headers["Connection"] = "close"
                raise error
            own += count
            self.held += count

        try:
            yield grow
        finally:
            self.held -= own


async def read_body(
    receive: Receive, headers: Iterable[tuple[bytes, bytes]], limits: Limits, grow: Callable[[int], None]
) -> bytes:
    """The whole body. Raises ApiError 413 and 408, BodyTooLarge before any of it is read where its length says so.

    `grow` is told how many bytes came, and may refuse them.
    """
    said = next((value for name, value in headers if name == b"content-length"), b"0")
    if not said.isdigit() or int(said) > limits.body_bytes:
        raise BodyTooLarge(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                more = message.get("body", b"")
                if len(body) + len(more) > limits.body_bytes:
                    raise BodyTooLarge(limits)
                grow(len(more))
                body += more
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not come within {limits.body_seconds:g} seconds.",
            code="body_too_slow",
            headers={"Connection": "close"},
        ) from None


async def drop_body(receive: Receive) -> None:
    """Read what a client still sends, for a moment."""
    try:
        async with asyncio.timeout(LINGER):
            while (message := await receive())["type"] != "http.disconnect":
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and ClientGone raised, when the client closes its connection first."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
