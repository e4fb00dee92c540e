"""Pictures of training documents as squares of levels: exactly what the released model saw, or nearly and sooner.

    exact   `images.resize`: Pillow's antialiased bicubic filter, bit for bit
    fast    torch's kernel of the same filter, whose weights are 16-bit: most levels equal, the others off by one or two

Both decode a plain JPEG by simplejpeg where it is installed, which gives the levels that Pillow gives.
"""

import numpy as np
from jaxtyping import UInt8

from qwenvl.data.stream.samples import Located
from qwenvl.images import open_image, resize


def square(source: object, size: int, *, fast: bool = False) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The picture squashed to `size` pixels a side. `source` is what `images.open_image` opens, or a `Located`.

    Raises ValueError for whatever is no picture, OSError for a file that cannot be read.
    """
    picture = open_image(source.read() if isinstance(source, Located) else source)  # type: ignore[arg-type]
    return _fast(np.asarray(picture), size) if fast else resize(picture, size)


def _fast(levels: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(np.ascontiguousarray(levels)).permute(2, 0, 1)[None]
    resized = interpolate(planes, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
