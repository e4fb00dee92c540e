"""Images opened lately: the next message of a conversation sends them again, and decoding a photo costs more than a
small model's whole answer.

What is kept is the square that the model sees, with the digest by which the engine knows it. The key is a digest of
the encoded bytes and of the API key's salt, so that no timing tells one key what another has shown.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

from qwenvl.serve.media import Upload

BUDGET = 64 << 20
"""Bytes of pixels that are kept."""


PIXEL = 4
"""Bytes that Pillow holds for a pixel in RGB."""


@dataclass(frozen=True)
class Seen:
    """An image as it is kept."""

    upload: Upload
    digest: bytes
    """`generate.visual.digest` of what the model reads."""


class RecentImages:
    """The least recently used go first; any thread may ask."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self.held_bytes = 0
        """Memory of all that is kept."""
        self._images: OrderedDict[bytes, Seen] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def key(data: bytes, salt: bytes) -> bytes:
        """What the encoded bytes of one API key are found by."""
        return blake2b(data, digest_size=32, key=salt).digest()

    def get(self, key: bytes) -> Seen | None:
        """The image, if it is still there."""
        with self._lock:
            seen = self._images.get(key)
            if seen is not None:
                self._images.move_to_end(key)
            return seen

    def put(self, key: bytes, seen: Seen) -> None:
        """Keep an image, and as many of the others as still fit."""
        with self._lock:
            if key not in self._images:
                self._images[key] = seen
                self.held_bytes += _size(seen)
            while self.held_bytes > self._budget:
                _, gone = self._images.popitem(last=False)
                self.held_bytes -= _size(gone)


def _size(seen: Seen) -> int:
    image = seen.upload.image
    return image.width * image.height * PIXEL
