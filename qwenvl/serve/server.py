"""The process: a socket, uvicorn, and what signals mean.

SIGTERM or SIGINT drains: /ready says 503, new requests are refused, those that run have `drain` seconds to end; then,
or at a second signal, they end with an error. The process ends with 0, with 1 where answers were cut off or the engine
has failed, with 130 after Ctrl-C.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn

from qwenvl.serve.app import Api
from qwenvl.serve.connections import protocol
from qwenvl.serve.errors import busy

LINGER = 1.0
"""Seconds in which a server whose engine has failed still says so, before it ends."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without signals of its own: it would close the socket at the first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 finds a free one.

    Raises ValueError where another program listens there, else OSError with the address in place of a file name.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"another program listens at {host}:{port}; stop it, or give another --port (0 finds a free one)."
            ) from None
        number = error.errno or 0  # not above 0 where it was the name that could not be looked up
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise OSError(number, reason, f"{host}:{port}") from None


def run(api: Api, sock: socket.socket, *, drain: float = 30.0) -> int:
    """Serve until a signal; returns the exit status. Raises what kept the model from being loaded."""
    return asyncio.run(_Process(api, sock, drain).run())


class _Process:
    def __init__(self, api: Api, sock: socket.socket, drain: float) -> None:
        self.api, self.sock, self.drain = api, sock, drain
        config = uvicorn.Config(
            api,
            http=protocol(api.limits),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(max(1, api.limits.keep_alive_seconds)),
            timeout_graceful_shutdown=2,
        )
        self.server = _Uvicorn(config)
        api.metrics.connections.set_function(lambda: len(self.server.server_state.connections))
        self.signals: list[int] = []
        self.status = 0
        self._ending: asyncio.Task[None] | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        self.api.worker.on_death = self._died
        await self.server.serve(sockets=[self.sock])
        death = self.api.worker.death
        if death is not None and not self.api.worker.loaded:
            raise death  # the model could not be read: one sentence for whoever started the server
        return 130 if self.signals[:1] == [signal.SIGINT] and not self.status else self.status

    def _signalled(self, number: int) -> None:
        self.signals.append(number)
        if self._ending is None:
            self.api.log.info("draining", unfinished=self.api.admission.answers, seconds=self.drain)
            self._ending = asyncio.ensure_future(self._drain())
        else:
            self._cut()

    async def _drain(self) -> None:
        self.api.drain()
        try:
            async with asyncio.timeout(self.drain):
                while self.api.admission.answers and not self.server.should_exit:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._cut()
        self.server.should_exit = True

    def _cut(self) -> None:
        """End what still runs, with an error that says so."""
        if self.api.admission.answers:
            self.status = 1
            self.api.log.error("cut", unfinished=self.api.admission.answers)
        self.api.worker.end_all(
            busy("The server is shutting down; ask again.", seconds=10, status=503, code="draining")
        )
        self.server.should_exit = True

    def _died(self, error: BaseException) -> None:
        self.status = 1
        if self.api.worker.loaded:
            self.api.log_failure(None, error)
            self._ending = self._ending or asyncio.ensure_future(self._linger())
        else:
            self.server.should_exit = True

    async def _linger(self) -> None:
        await asyncio.sleep(LINGER)
        self.server.should_exit = True
