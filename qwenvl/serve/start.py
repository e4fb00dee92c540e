"""From the command line to a running server: what is wrong is said before a model is read."""

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl.serve.limits import Limits
from qwenvl.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenvl.serve.app import Api


@dataclass(frozen=True, kw_only=True)
class Start:
    """What `qwenvl serve` was listed."""

    checkpoint: str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    aliases: tuple[str, ...] = ()
    keys: Path | None = None
    names: tuple[str, ...] = ()
    media_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    raw_orientation: bool = False
    strict: bool = False
    rows: int = 16
    context: int | None = None
    cache_tokens: int | None = None
    prefix_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    drain: float = 30.0
    quiet: bool = False
    limits: Limits = Limits()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65_535),
            ("rows", 1, 4_096),
            ("context", 2, 1 << 20),
            ("cache_tokens", 64, 1 << 30),
            ("prefix_tokens", 0, 1 << 30),
            ("threads", 1, 4_096),
            ("drain", 0, 86_400),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {low} to {high}.")

    def run(self) -> int:
        """Serve until a signal; returns the exit status. Raises ValueError and OSError for what cannot be done."""
        _require_libraries()
        from qwenvl.serve.server import listen, run

        sock = listen(self.host, self.port)
        host, port = sock.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        api = self.api(on_ready=lambda: _say(f"{api.config.name} at {url} (page), {url}/v1 (API)"))
        if self.keys is None and not _loopback(self.host):
            _say(f"warning: {url} is open to the network and has no --keys: whoever reaches it may ask.")
        _say(f"reading {self.checkpoint} ...")
        return run(api, sock, drain=self.drain)

    def api(self, on_ready: "Callable[[], None] | None" = None) -> "Api":
        """The application (ASGI), for a process of another making: it loads the model when it is started (lifespan).

        Raises ValueError and OSError for what cannot be done.
        """
        _require_libraries()
        from qwenvl.serve.app import Api, Loaded, ServeConfig
        from qwenvl.serve.auth import Guard, Keys
        from qwenvl.serve.fetch import Fetcher, Origin
        from qwenvl.serve.logs import Log

        keys = Keys.read(self.keys) if self.keys is not None else None
        guard = Guard.make(keys=keys, loopback=_loopback(self.host), names=self.names, origins=self.origins)
        origins = [Origin.parse(entry) for entry in self.media_hosts]
        fetcher = Fetcher(origins, self.limits) if origins else None

        def load() -> Loaded:
            from qwenvl.serve.loading import load

            return load(self)

        config = ServeConfig(
            name=self.name or self._own_name(),
            aliases=self.aliases,
            rows=self.rows,
            strict=self.strict,
            guarded=keys is not None,
        )
        return Api(
            load,
            config,
            guard=guard,
            limits=self.limits,
            log=Log(quiet=self.quiet),
            fetcher=fetcher,
            on_ready=on_ready,
        )

    def _own_name(self) -> str:
        """The last part of a folder's name; a hub id, and `tiny`, as they are."""
        place = Path(self.checkpoint)
        return place.resolve().name if place.is_dir() else self.checkpoint


def _require_libraries() -> None:
    try:
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"qwenvl serve needs {error.name}; pip install 'qwenvl[serve]'.") from None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(text: str) -> None:
    print(f"qwenvl: {printable(text)}", file=sys.stderr, flush=True)
