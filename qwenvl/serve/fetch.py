"""Images from hosts that the operator named: absent by default, and then there is nothing that could be asked to fetch.

    qwenvl serve tiny --allow-media-host images.example --allow-media-host http://cdn.example:8080

A URL is taken apart by one strict pattern and put together again from its parts; its scheme, host and port must be
one of the named origins; the name is looked up once, every address must be public, and one of those very addresses is
dialled (with the name in Host and in TLS). A redirect is a new URL. Nothing of the surroundings is used: no proxy, no
.netrc, no cookie. Whoever asks is told one sentence for every refusal, so that no answer tells what there is inside.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from qwenvl.serve.limits import Limits
from qwenvl.serve.media import RefusedMedia

REFUSAL = (
    "This image could not be fetched: only some hosts may be named, and they must answer with an image; "
    "send it as a data URL (data:image/png;base64,...)."
)
"""What a client hears of every refusal."""

_URL = re.compile(
    r"(https?)://([a-z0-9.-]{1,253})(?::([0-9]{1,5}))?([/?][!-\[\]-~]*)?", re.ASCII | re.IGNORECASE
)  # no backslash
_ENTRY = re.compile(r"(?:(https?)://)?([a-z0-9.-]{1,253})(?::([0-9]{1,5}))?/?", re.ASCII | re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LONGEST_URL = 2_048
_OVERHEAD = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"https": 443, "http": 80}

_V4_APART = tuple(
    map(
        ipaddress.IPv4Network,
        ("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3", "168.63.129.16/32"),
    )
)
"""Beside what Python calls private: protocol assignments, 6to4, benchmarks, multicast and above, Azure's host."""

_V6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_V6_APART = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
"""Teredo and other assignments, documentation, 6to4: what tunnels to an address that is not looked at."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolve = Callable[[str, int], Iterable[str]]
"""Name and port to addresses, as text."""

Dial = Callable[[str, int, float], socket.socket]
"""Address, port and seconds to a connected socket."""


@dataclass(frozen=True)
class Origin:
    """Where images may come from: one scheme, host and port."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, entry: str) -> "Origin":
        """An entry `[http://]HOST[:PORT]`; https on 443 unless it says otherwise. Raises ValueError."""
        match = _ENTRY.fullmatch(entry)
        origin = match and _origin(match[1] or "https", match[2], match[3])
        if not origin:
            raise ValueError(
                f"The media host {entry!r} is not HOST[:PORT]; write images.example, images.example:8443 or "
                "http://images.example (international names in their xn-- form; no * and no path)."
            )
        return origin


def public(address: str) -> bool:
    """Whether an address is one of the public internet, an IPv4 address inside an IPv6 one looked at first."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None:
            return False
        inner = found.ipv4_mapped
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is None:
            return found.is_global and found in _V6_GLOBAL and not any(found in net for net in _V6_APART)
        found = inner
    return found.is_global and not any(found in net for net in _V4_APART)


class Fetcher:
    """Fetches from `origins` and from nowhere else; `fetched` and `refused` count what it did, by reason.

    `resolve`, `dial` and `context` are the system's; tests bring their own. Raises ValueError without an origin.
    """

    def __init__(
        self,
        origins: Iterable[Origin],
        limits: Limits,
        *,
        resolve: Resolve | None = None,
        dial: Dial | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.origins = frozenset(origins)
        if not self.origins:
            raise ValueError(
                "A fetcher needs the hosts that it may fetch from; without any there is no fetcher."
            )
        self.refused: Counter[str] = Counter()
        self.fetched = 0
        self._limits, self._resolve, self._dial = limits, resolve or _resolve, dial or _dial
        self._context = context or ssl.create_default_context()
        self._free, self._counts = threading.BoundedSemaphore(limits.fetches), threading.Lock()

    def fetch(self, url: str) -> bytes:
        """The bytes behind a URL, from a thread that may wait. Raises RefusedMedia with `REFUSAL` for all else."""
        deadline = time.monotonic() + self._limits.fetch_seconds
        try:
            if not self._free.acquire(timeout=self._limits.fetch_seconds):
                _refuse("busy")
            try:
                data = self._follow(url, deadline)
            finally:
                self._free.release()
        except RefusedMedia as error:
            self._count(error.reason)
            raise
        except (OSError, http.client.HTTPException, ValueError):  # ssl.SSLError and timeouts are OSErrors
            self._count("connection")
            raise RefusedMedia(REFUSAL, "connection") from None
        with self._counts:
            self.fetched += 1
        return data

    def _count(self, reason: str) -> None:
        with self._counts:
            self.refused[reason] += 1

    def _follow(self, url: str, deadline: float) -> bytes:
        for _ in range(self._limits.redirects + 1):
            origin, path = self._allowed(url)
            response = self._open(origin, path, deadline)
            try:
                if response.status not in _REDIRECTS:
                    return self._read(response)
                url = _absolute(response.getheader("Location", ""), origin)
            finally:
                response.close()
        _refuse("redirects")

    def _allowed(self, url: str) -> tuple[Origin, str]:
        match = _URL.fullmatch(url.partition("#")[0]) if len(url) <= _LONGEST_URL else None
        origin = match and _origin(match[1], match[2], match[3])
        if not match or not origin:
            _refuse("URL")
        if origin not in self.origins:
            _refuse("host")
        path = match[4] or "/"
        return origin, path if path.startswith("/") else f"/{path}"

    def _open(self, origin: Origin, path: str, deadline: float) -> http.client.HTTPResponse:
        addresses = list(
            dict.fromkeys(_in_time(lambda: list(self._resolve(origin.host, origin.port)), deadline))
        )
        if not addresses or not all(map(public, addresses)):
            _refuse("address")
        stream = _Timed(
            self._connect(addresses, origin, deadline), deadline, self._limits.image_bytes + _OVERHEAD
        )
        try:
            stream.sendall(_request(origin, path))
            response = http.client.HTTPResponse(stream, method="GET")  # type: ignore[arg-type]
            response.begin()
        except BaseException:
            stream.close()
            raise
        return response

    def _connect(self, addresses: list[str], origin: Origin, deadline: float) -> socket.socket:
        for number, address in enumerate(addresses[:4], start=1):
            try:
                plain = self._dial(
                    address, origin.port, _left(deadline) / (2 if number < len(addresses) else 1)
                )
                break
            except OSError:
                continue
        else:
            _refuse("connection")
        if origin.scheme == "http":
            return plain
        try:
            plain.settimeout(_left(deadline))
            return self._context.wrap_socket(plain, server_hostname=origin.host)
        except BaseException:
            plain.close()
            raise

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            _refuse("status")
        if response.getheader("Content-Encoding", "identity").strip().lower() != "identity":
            _refuse("encoding")
        if (response.length or 0) > self._limits.image_bytes:
            _refuse("bytes")
        data = response.read(self._limits.image_bytes + 1)
        if len(data) > self._limits.image_bytes:
            _refuse("bytes")
        if response.length:  # it was announced and did not come
            _refuse("connection")
        return data


# === Parts ===


def _refuse(reason: str) -> NoReturn:
    raise RefusedMedia(REFUSAL, reason)


def _origin(scheme: str, host: str, port: str | None) -> Origin | None:
    scheme, host = scheme.lower(), host.lower()
    number = int(port) if port else _PORTS[scheme]
    good = 1 <= number <= 65535 and all(map(_LABEL.fullmatch, host.split(".")))
    return Origin(scheme, host, number) if good else None


def _absolute(location: str, origin: Origin) -> str:
    """Where a redirect leads; relative ones begin with a slash, and what else may stand there is refused later."""
    if location.startswith("//"):
        return f"{origin.scheme}:{location}"
    return (
        f"{origin.scheme}://{origin.host}:{origin.port}{location}" if location.startswith("/") else location
    )


def _request(origin: Origin, path: str) -> bytes:
    host = origin.host if origin.port == _PORTS[origin.scheme] else f"{origin.host}:{origin.port}"
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "User-Agent: qwenvl",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        _refuse("time")
    return left


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for *_, address in found]


def _dial(address: str, port: int, seconds: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    plain = socket.socket(family, socket.SOCK_STREAM)
    try:
        plain.settimeout(seconds)
        plain.connect((address, port))
    except BaseException:
        plain.close()
        raise
    return plain


def _in_time(work: Callable[[], list[str]], deadline: float) -> list[str]:
    """`work`, which cannot be stopped (a look-up of a name), waited for as long as there is time."""
    found: list[list[str]] = []

    def run() -> None:
        try:
            found.append(work())
        except (OSError, UnicodeError):
            found.append([])

    thread = threading.Thread(target=run, daemon=True, name="qwenvl name look-up")
    thread.start()
    thread.join(_left(deadline))
    return found[0] if found else _refuse("time")


class _Timed(io.RawIOBase):
    """What HTTPResponse needs of a socket, where one deadline and one number of bytes hold for all of it."""

    def __init__(self, inner: socket.socket, deadline: float, most: int) -> None:
        self._inner, self._deadline, self._most = inner, deadline, most

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(self)

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(_left(self._deadline))
        self._inner.sendall(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._inner.settimeout(_left(self._deadline))
        count = self._inner.recv_into(buffer)
        self._most -= count
        if self._most < 0:
            _refuse("bytes")
        return count

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()
