"""Bytes to the scripted server, and what it answers."""

import socket
from collections.abc import Callable

import pytest
import scripted
from serving import Running

assistant, shared, engine, server = scripted.FIXTURES


@pytest.fixture
def raw(server: Running) -> Callable[..., bytes]:
    """Bytes as they are to the server, and what it answers until it closes, or `seconds` have passed."""

    def send(data: bytes, *, seconds: float = 5.0, to: Running = server) -> bytes:
        with socket.create_connection((to.host, to.port), timeout=seconds) as connection:
            connection.sendall(data)
            answer = b""
            try:
                while more := connection.recv(65536):
                    answer += more
            except (TimeoutError, ConnectionResetError):
                pass
            return answer

    return send
