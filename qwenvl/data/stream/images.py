"""Images of training documents as squares of levels: exactly what the released model saw, or nearly and sooner.

exact   `images.resize`: Pillow decodes, and its antialiased bicubic filter squashes, bit for bit
fast    simplejpeg decodes a plain JPEG to the same levels, torch's kernel of the same filter squashes them; its
        weights have 16 bits, so that three levels in a thousand are off by one or two. Some tall images are off
        further, because Pillow 13 squashes them down first and across then, torch never does
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image as pillow

from qwenvl.data.stream.samples import Located
from qwenvl.images import MAX_PIXELS, open_image, resize, rgb


def square(
    source: object, size: int, *, fast: bool = False, ground: Sequence[int] = ()
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The image squashed to `size` pixels a side, on a `ground` if that is given (`images.rgb`).

    `source` is what `images.open_image` opens, or a `Located`.

    Raises ValueError for whatever is no image, OSError for a file that cannot be read.
    """
    if not fast:
        return resize(opened(source, ground), size)
    given = source.read() if isinstance(source, Located) else source
    levels = _of_jpeg(given)
    return _squashed(np.array(opened(given, ground)) if levels is None else levels, size)


def opened(source: object, ground: Sequence[int] = ()) -> pillow.Image:
    """The image in RGB, wherever it lies, on a `ground` if that is given. Raises as `square`."""
    given = source.read() if isinstance(source, Located) else source
    return open_image(given, ground=rgb(ground))  # type: ignore[arg-type]


def _of_jpeg(given: object) -> UInt8[np.ndarray, "height width 3"] | None:
    """The levels of a JPEG in three colours or in grey; None for everything else, which Pillow looks at."""
    import simplejpeg

    encoded = given if isinstance(given, bytes) else None
    if encoded is None or not encoded.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        return None


def _squashed(levels: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(levels).permute(2, 0, 1)[None]  # a view: the kernel reads colours side by side
    squashed = interpolate(planes, (size, size), mode="bicubic", antialias=True)
    return squashed[0].permute(1, 2, 0).contiguous().numpy()
