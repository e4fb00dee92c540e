"""A hostile pair for the fetcher: an HTTP server on 127.0.0.1 that misbehaves as told, and a resolver that lies."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket, bytes], None]
"""What the server does with a connection and the request head that it read from it."""


class Web:
    """Names with their addresses, and one server behind all of them; it remembers what was looked up and dialled."""

    def __init__(self, port: int, names: dict[str, list[list[str]]]) -> None:
        self.port, self._names = port, names
        self.looked_up: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        self.requests: list[bytes] = []

    def resolve(self, host: str, port: int) -> list[str]:
        """The next answer for a name; the last one stays."""
        self.looked_up.append(host)
        answers = self._names.get(host, [[]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def dial(self, address: str, port: int, seconds: float) -> socket.socket:
        """Whatever address is dialled, it is the hostile server that answers."""
        self.dialled.append((address, port))
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)


@contextmanager
def web(
    script: Script,
    names: dict[str, list[list[str]]] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Web]:
    """A server that runs `script` for each connection, as long as the block lasts; under `tls` where it is listed."""
    listener = socket.create_server(("127.0.0.1", 0))
    found = Web(listener.getsockname()[1], names or {"images.example": [["93.184.216.34"]]})

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(plain: socket.socket) -> None:
        try:
            connection = tls.wrap_socket(plain, server_side=True) if tls is not None else plain
        except OSError:  # the client did not trust us
            plain.close()
            return
        with connection:
            head = b""
            try:
                while b"\r\n\r\n" not in head:
                    if not (more := connection.recv(4096)):
                        return
                    head += more
                found.requests.append(head)
                script(connection, head)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield found
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def says(body: bytes, *headers: str, status: str = "200 OK") -> Script:
    """A script that answers every request alike."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    head = "\r\n".join([*lines, "", ""]).encode()
    return lambda connection, _: connection.sendall(head + body)
