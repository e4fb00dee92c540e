"""Images that are sent again are not decoded again, for the same key only."""

import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image as pillow
from serving import Running, shown, text

from qwenvl.generate import runner
from qwenvl.serve import requests
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import Upload, open_upload
from qwenvl.serve.recent import RecentImages, Seen

PNG = Callable[..., bytes]


def test_an_image_sent_again_is_opened_once(
    server: Running, png: PNG, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor digested again: the engine knows it by what was found then, and sees it once."""
    opened, digested = [], []
    real, digest = requests.open_upload, requests.digest

    def counted(data: bytes, *args: object, **more: object) -> Upload:
        opened.append(data)
        return real(data, *args, **more)  # type: ignore[arg-type]

    def digested_too(pixels: Any) -> bytes:
        digested.append(pixels)
        return digest(pixels)

    monkeypatch.setattr(requests, "open_upload", counted)
    for place in (requests, runner):
        monkeypatch.setattr(place, "digest", digested_too)
    first, second = png(91), png(92, width=50)
    for image in (first, second, first, first, second):
        answer = server.chat([shown(image), text("What?")])
        size = [[50, 30]] if image is second else [[40, 30]]
        assert answer.json["choices"][0]["message"]["qwenvl"]["image_sizes"] == size
    assert opened == [first, second] and len(digested) == 2


def test_keys_do_not_share() -> None:
    recent = RecentImages()
    assert recent.key(b"image", b"one key") != recent.key(b"image", b"another")
    assert recent.key(b"image", b"") == recent.key(b"image", b"") != recent.key(b"images", b"")


def test_what_was_not_seen_for_long_goes_first() -> None:
    def one() -> Seen:
        return Seen(Upload(image=pillow.new("RGB", (10, 10)), width=10, height=10, orientation=1), b"digest")

    recent = RecentImages(budget=3 * 400)
    for name in (b"a", b"b", b"c"):
        recent.put(name, one())
    recent.put(b"a", one())
    assert recent.get(b"a") is not None
    recent.put(b"d", one())
    assert [name for name in (b"a", b"b", b"c", b"d") if recent.get(name)] == [b"a", b"c", b"d"]
    threads = [
        threading.Thread(target=lambda n=n: [recent.put(b"%d %d" % (n, k), one()) for k in range(200)])
        for n in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert recent.held_bytes == 1200 and len(recent._images) == 3


def test_what_is_kept_is_counted_in_bytes_of_memory() -> None:
    """Pillow takes four bytes for a pixel; and nothing that stood beside the pixels is kept: a GIF's comments stayed,
    megabytes that nobody had counted."""
    file = io.BytesIO()
    pillow.new("P", (8, 8)).save(file, "GIF", comment=b"x" * 100_000)
    upload = open_upload(file.getvalue(), Limits(), side=56)
    assert upload.image.size == (56, 56) and not upload.image.info
    assert (
        sum(len(pickle.dumps(each)) for each in vars(upload.image).values() if isinstance(each, dict | bytes))
        < 100
    )
    recent = RecentImages()
    recent.put(b"a", Seen(upload, b"digest"))
    assert recent.held_bytes == 4 * 56 * 56
