"""Images opened lately: the next message of a conversation sends them again, and decoding a photo costs more than a
small model's whole answer.

What is kept is the square that the model sees. The key is a digest of the encoded bytes and of the API key's salt, so
that no timing tells one key what another has shown.
"""

import threading
from collections import OrderedDict
from hashlib import blake2b

from qwenvl.serve.media import Upload

BUDGET = 64 << 20
"""Bytes of pixels that are kept."""


PIXEL = 4
"""Bytes that Pillow holds for a pixel in RGB."""


class RecentImages:
    """The least recently used go first; any thread may ask."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self.held_bytes = 0
        """Memory of all that is kept."""
        self._uploads: OrderedDict[bytes, Upload] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def key(data: bytes, salt: bytes) -> bytes:
        """What the encoded bytes of one API key are found by."""
        return blake2b(data, digest_size=32, key=salt).digest()

    def get(self, key: bytes) -> Upload | None:
        """The image, if it is still there."""
        with self._lock:
            upload = self._uploads.get(key)
            if upload is not None:
                self._uploads.move_to_end(key)
            return upload

    def put(self, key: bytes, upload: Upload) -> None:
        """Keep an image, and as many of the others as still fit."""
        with self._lock:
            if key not in self._uploads:
                self._uploads[key] = upload
                self.held_bytes += _size(upload)
            while self.held_bytes > self._budget:
                _, gone = self._uploads.popitem(last=False)
                self.held_bytes -= _size(gone)


def _size(upload: Upload) -> int:
    return upload.image.width * upload.image.height * PIXEL
