"""What every test may count on: no network, the same examples each time, and the command line as a function."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import hypothesis
import jaxtyping
import pytest
import typecheck

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch loads: the suite runs in two processes on two cores
os.environ["HF_HUB_OFFLINE"] = "1"

jaxtyping.jaxtyped = typecheck.checked  # what the hook that checks shapes calls

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.load_profile("house")

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests talk to this machine only."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and (not isinstance(address, tuple) or address[0] not in LOOPBACK):
            raise AssertionError(f"a test tried to reach {address}; tests are offline")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(scope="session")
def qwenvl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`qwenvl("ask", "tiny", ...)` in a process of its own, as a person would type it; 80 columns, no terminal."""

    def run(
        *args: object, cwd: os.PathLike[str] | None = None, timeout: float = 580
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qwenvl", *map(str, args)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            timeout=timeout,
            env={**os.environ, "COLUMNS": "80"},
        )

    return run
