"""Who may ask: API keys, host names, origins. `Guard.admit` is asked before anything of a request's body is read.

    guard = Guard.make(keys=Keys.read(path), loopback=True, names=(), origins=())
    admitted = guard.admit("POST", "/v1/chat/completions", headers)     # or Refused: status, sentence, headers

Every path is behind the key but `OPEN`. The page at / is among those because a browser sends no key with a
navigation; it is a constant of this program and holds nothing of anybody. Without keys a server on this machine is
still no tool of other web sites: they reach it by a name that is not its own (DNS rebinding) or send what a browser
sends without asking (a form, text/plain); both are refused.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwenvl.files import open_regular

OPEN = frozenset({"/", "/health", "/ready"})
"""Paths that need no key, spelled exactly; everything else needs one, also what does not exist."""

PROBES = frozenset({"/health", "/ready"})
"""Paths that answer under any Host: load balancers and Kubernetes ask by address, and the answer is one word."""

_KEY = re.compile(r"[!-~]{16,512}")
_LARGEST = 1 << 20
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(
    r"(https?)://(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::([0-9]{1,5}))?", re.ASCII | re.IGNORECASE
)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI gives them: names in lower case, in order, repeated ones too."""


class Refused(Exception):
    """A request that is not taken; the app makes OpenAI's error of it."""

    def __init__(
        self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers: dict[str, str] = dict(headers or {})


@dataclass(frozen=True)
class Admitted:
    """A request that is taken."""

    salt: bytes = b""
    """Keeps the caches of different keys apart: 16 bytes made from the key, none where no key is needed."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For the answer: CORS, where the request came from an origin that was named."""

    @property
    def client(self) -> str:
        """The key's name in logs and quotas: 8 digits, of which no key can be made."""
        return hashlib.blake2b(self.salt, digest_size=4).hexdigest() if self.salt else "anyone"


class Keys:
    """API keys, of which only digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(dict.fromkeys(_digest(key.encode("ascii")) for key in keys))
        if not self._digests:
            raise ValueError("There is no API key; without any, start the server without a key file.")

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Keys from a file: one a line, 16 to 512 visible ASCII characters; empty lines and lines with # are notes.

        Raises ValueError for a file that other users may read, or a group may change, and for a line that is no
        key (which is named by its number, never shown), or where there is none.
        """
        if not path.exists():
            raise ValueError(
                f"there is no key file {path}; `openssl rand -hex 24 > {path} && chmod 600 {path}` makes one."
            )
        with open_regular(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_LARGEST + 1)
        if mode & 0o027:
            raise ValueError(
                f"The key file {path} has mode {mode:04o}, so that others may read or change it; "
                f"chmod 600 {path} (in Kubernetes: defaultMode: 0440)."
            )
        if len(data) > _LARGEST:
            raise ValueError(f"The key file {path} is larger than {_LARGEST:,} bytes; give one key a line.")
        lines = [line.strip() for line in data.decode("utf-8-sig", "replace").split("\n")]
        numbered = [(n, line) for n, line in enumerate(lines, start=1) if line and not line.startswith("#")]
        for number, line in numbered:
            if not _KEY.fullmatch(line):
                raise ValueError(
                    f"Line {number} of the key file {path} is no key; a key has 16 to 512 visible ASCII characters "
                    "and no space (openssl rand -hex 24 makes one)."
                )
        if not numbered:
            raise ValueError(
                f"The key file {path} holds no key; write one a line (openssl rand -hex 24 makes one)."
            )
        return cls(line for _, line in numbered)

    def identify(self, key: bytes) -> bytes | None:
        """16 bytes that stand for a key that is known, else None; the time says nothing of any key."""
        given, found = _digest(key), b""
        for digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = digest
        return hashlib.blake2b(found, digest_size=16, person=b"qwenvl cache").digest() if found else None


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The rules; `make` chooses them from what the command line says."""

    keys: Keys | None
    names: frozenset[str] | None
    """Host names under which this server answers; None where any does (there is a key, and it is not a local one)."""
    addresses: bool
    """Whether any IP address is a name, too: a foreign web site has a name, never an address."""
    origins: frozenset[str]
    """Origins of web pages that may ask, or `*`."""

    @classmethod
    def make(
        cls, *, keys: Keys | None, loopback: bool, names: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> "Guard":
        """Rules for a server that listens on this machine only (`loopback`) or on the network.

        `names` are further host names of it, `origins` web pages elsewhere (`https://chat.example`, or `*` where
        there are keys). Raises ValueError for what is none.
        """
        given = frozenset(map(_host_name, names))
        pages = frozenset(origin if origin == "*" else _page(origin) for origin in origins)
        if "*" in pages and keys is None:
            raise ValueError(
                "CORS for * lets every web site use this server; name the origins, or set API keys."
            )
        if loopback:
            return cls(keys=keys, names=_LOOPBACK | given, addresses=False, origins=pages)
        anybody = keys is not None and not given
        own = None if anybody else _LOOPBACK | given | {socket.gethostname().lower()}
        return cls(keys=keys, names=own, addresses=True, origins=pages)

    def admit(self, method: str, path: str, headers: Headers) -> Admitted:
        """Raises Refused unless the request may be looked at: its Host, its origin, its key, its content type."""
        given = list(headers)
        host = _single(given, b"host")
        if path not in PROBES:
            self._require_host(host)
        answer = self._cors(method, host, _single(given, b"origin"), _single(given, b"sec-fetch-site"))
        salt = b"" if path in OPEN and method in ("GET", "HEAD") else self._key(given, answer)
        if method == "POST":
            _require_json(_single(given, b"content-type"), answer)
        return Admitted(salt, answer)

    def preflight(self, headers: Headers) -> dict[str, str] | None:
        """The headers that answer a browser's question (OPTIONS) for a page that was named; None for all others."""
        given = list(headers)
        allowed = self._allowed_origin(_single(given, b"origin"))
        if allowed is None or _single(given, b"access-control-request-method") is None:
            return None
        wanted = (_single(given, b"access-control-request-headers") or "").split(",")
        names = [name.strip() for name in wanted[:64] if _HEADER_NAME.fullmatch(name.strip())]
        return {
            **allowed,
            "Access-Control-Allow-Methods": "GET, POST, HEAD",
            "Access-Control-Allow-Headers": ", ".join(names) or "authorization, content-type",
            "Access-Control-Max-Age": "600",
        }

    def _require_host(self, host: str | None) -> None:
        if self.names is None or host is None:  # none: HTTP/1.0, which no browser speaks
            return
        match = _HOST.fullmatch(host)
        name = match[1].lower() if match else ""
        if name not in self.names and not (self.addresses and _is_address(name)):
            raise Refused(
                421,
                "This server does not answer under the host name of this request; start it with --allow-host NAME.",
                "unknown_host",
            )

    def _cors(self, method: str, host: str | None, origin: str | None, site: str | None) -> dict[str, str]:
        allowed = self._allowed_origin(origin)
        if allowed is not None:
            return allowed
        foreign = (origin is not None and not _same_site(origin, host)) or site in ("cross-site", "same-site")
        if method not in ("GET", "HEAD", "OPTIONS") and foreign:
            raise Refused(
                403,
                "A web page of another origin may not use this server; start it with --cors ORIGIN to allow one.",
                "origin_not_allowed",
            )
        return {}

    def _allowed_origin(self, origin: str | None) -> dict[str, str] | None:
        if origin is None or not ({"*", origin.lower()} & self.origins):
            return None
        return {
            "Access-Control-Allow-Origin": "*" if "*" in self.origins else origin,
            "Access-Control-Expose-Headers": "x-request-id, retry-after",
            "Vary": "Origin",
        }

    def _key(self, headers: list[tuple[bytes, bytes]], answer: Mapping[str, str]) -> bytes:
        if self.keys is None:
            return b""
        presented = [_bearer(value) for name, value in headers if name == b"authorization"]
        presented += [value.strip() for name, value in headers if name == b"api-key"]
        found = {self.keys.identify(key) for key in presented[:2] if key is not None} - {None}
        if len(found) != 1 or len(presented) > 2:
            raise Refused(
                401,
                "This server needs an API key: send Authorization: Bearer KEY, with a key of the server's key file.",
                "invalid_api_key",
                {"WWW-Authenticate": "Bearer", **answer},
            )
        return found.pop() or b""


# === Parts ===


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _single(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    values = [value for each, value in headers if each == name]
    if len(values) > 1:
        raise Refused(400, f"The header {name.decode()} is given {len(values)} times.", "repeated_header")
    return values[0].decode("latin-1").strip() if values else None


def _bearer(value: bytes) -> bytes | None:
    scheme, _, key = value.strip().partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None


def _require_json(content_type: str | None, answer: Mapping[str, str]) -> None:
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(
            415,
            "The body must be JSON and say so; send Content-Type: application/json.",
            "unsupported_media_type",
            answer,
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _same_site(origin: str, host: str | None) -> bool:
    """Whether a page's origin is this server by the name that the request used; behind a proxy the scheme differs."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and host is not None and origin.partition("://")[2].lower() == host.lower()


def _host_name(name: str) -> str:
    match = _HOST.fullmatch(name)
    if match is None or match[1] != name:
        raise ValueError(
            f"The host {name!r} is no host name; write chat.example, without scheme, port or path."
        )
    return name.lower()


def _page(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"The origin {origin!r} is none; write https://chat.example, without a path.")
    return origin.lower()
