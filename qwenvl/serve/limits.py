"""How much one request, one key and one connection may ask for; each limit is checked before the work it limits."""

from dataclasses import dataclass, fields

MOST = {"stops": 16, "stop_characters": 256, "top_logprobs": 20}
"""What the engine looks for and tells at most (`generate.text`, `generate.choosing`), read here without torch."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is beyond a limit is refused with 400, 413, 429 or 431, never cut.

    Raises ValueError for a number below 1 or beyond what the engine can do (`MOST`), and for no time at all.
    """

    # === Connections ===

    connections: int = 512
    """Open sockets, those that say nothing included; one more is closed at once."""
    headers: int = 64
    """Header lines of a request (openai clients send about 20)."""
    header_bytes: int = 16 << 10
    """Bytes of the request line and its headers together."""
    header_seconds: float = 10.0
    """From the opening of the connection, or the first byte of a later request, to the end of the headers."""
    keep_alive_seconds: float = 30.0
    """Silence between two requests of a connection."""
    body_bytes: int = 32 << 20
    """Bytes of a request's body: about 24 MB of images in base64."""
    body_seconds: float = 60.0
    """From the end of the headers to the end of the body."""
    write_seconds: float = 60.0
    """How long a client may leave its full socket unread before its request is cancelled."""

    # === Images ===

    image_bytes: int = 20 << 20
    """Bytes of one encoded image."""
    image_pixels: int = 40_000_000
    """Pixels of one image, read from its header."""
    image_side: int = 16_384
    """Pixels of its longer side."""
    images: int = 16
    """Images of one request."""
    images_in_flight: int = 64
    """Images of all unfinished requests of one key."""
    fetches: int = 4
    """Images fetched at once, where hosts are named."""
    fetch_seconds: float = 20.0
    """From the look-up of a name to the last byte of an image, redirects included."""
    redirects: int = 3
    """Redirects of one fetch, each checked as the first address was."""

    # === A request ===

    values: int = 1_500_000
    """Commas and brackets of the body's JSON, more than its texts may have characters: each may become an object."""
    messages: int = 1_024
    """Messages of a conversation."""
    parts: int = 256
    """Parts of one message."""
    characters: int = 1_000_000
    """Characters of all texts of a request; 32,768 tokens are rarely 200,000."""
    tokens: int = 32_768
    """Tokens of one answer; the context window is usually less."""
    answers: int = 8
    """`n`: answers to one prompt."""
    top_logprobs: int = 20
    """Alternatives per token."""
    stops: int = 16
    """Stop strings."""
    stop_characters: int = 256
    """Characters of each."""
    logit_biases: int = 1_024
    """Entries of `logit_bias`."""
    unknown_keys: int = 64
    """Keys that are ignored; more is no client that is merely newer than this server."""

    # === Everybody together ===

    bodies_bytes: int = 512 << 20
    """Bytes of the bodies of all unfinished requests; one more is answered 429, unless it is smaller than 1 MiB."""
    queue: int = 64
    """Requests that wait for a place; one more is answered 429."""
    requests_in_flight: int = 32
    """Unfinished requests of one key."""
    queue_seconds: float = 120.0
    """How long a request may wait before it is answered 503."""
    request_seconds: float = 600.0
    """How long one may run (the timeout of the openai client)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 if field.type is float else value >= 1) or value == float("inf"):
                least = "seconds above 0" if field.type is float else "a number of at least 1"
                raise ValueError(f"The limit {field.name} is {value!r}; expected {least}.")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(
                    f"The limit {name} is {getattr(self, name)}; the engine can do {most} at most."
                )
