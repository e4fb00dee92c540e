"""Bodies of requests, read within limits, and clients that go away while their answer is made."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar

from qwenvl.serve.errors import ApiError
from qwenvl.serve.limits import Limits

Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]

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
            f"The body is larger than {limits.body_bytes:,} bytes, the limit here; send smaller images.",
            code="body_too_large",
            headers={"Connection": "close"},
        )


async def read_body(receive: Receive, headers: Iterable[tuple[bytes, bytes]], limits: Limits) -> bytes:
    """The whole body. Raises ApiError 413 and 408, BodyTooLarge before any of it is read where its length says so."""
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
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise BodyTooLarge(limits)
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
