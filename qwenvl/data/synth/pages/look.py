"""How synthetic pages vary: SynthDoG's hyper-parameters, and a bolder look of ours (paper A.4).

The paper keeps SynthDoG's defaults; they are the defaults here, under SynthDoG's names where its names say enough.
What SynthDoG has not (`turn`, `curl`) is off by default and on in `photograph()`.
"""

from dataclasses import dataclass, fields

Range = tuple[float | int, float | int]
"""Drawn evenly between the two ends."""

PERSPECTIVES: tuple[tuple[int, tuple[Range, Range, Range, Range]], ...] = (
    (750, ((0.75, 1), (0.75, 1), (0.75, 1), (0.75, 1))),
    (50, ((0.75, 1), (1, 1), (0.75, 1), (1, 1))),
    (50, ((1, 1), (0.75, 1), (1, 1), (0.75, 1))),
    (25, ((0.75, 1), (1, 1), (1, 1), (1, 1))),
    (25, ((1, 1), (0.75, 1), (1, 1), (1, 1))),
    (25, ((1, 1), (1, 1), (0.75, 1), (1, 1))),
    (25, ((1, 1), (1, 1), (1, 1), (0.75, 1))),
    (50, ((1, 1), (1, 1), (1, 1), (1, 1))),
)
"""SynthDoG's eight perspectives: weight, and what is left of the length of the top, right, bottom and left edge."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Ranges of everything that varies from page to page; the defaults are SynthDoG's (its config_en.yaml)."""

    short_side: Range = (720, 1024)
    """Pixels along the shorter side of the image."""
    aspect: Range = (1, 2)
    """Longer over shorter side, of the image and of the page in it."""
    landscape: float = 0.5
    """Share of images (and of pages) that are wider than tall."""
    longest: int | None = None
    """Pixels along the longer side of every image instead; `short_side` is then not used."""
    quality: tuple[int, int] = (50, 95)
    """JPEG quality, both ends included."""

    background_blur: Range = (0, 10)
    """Sigma in pixels."""
    fullscreen: float = 0.5
    """Share of images that the page fills, as a scan does."""
    page_short_side: Range = (480, 1024)
    """Pixels along the shorter side of a page that does not fill the image, before it is cut to the image."""

    paper: Range = (0, 0.2)
    """Strength of the paper's texture; 1 would be all texture."""
    margin: Range = (0, 0.1)
    """Empty rim, share of the shorter side of the page."""
    text_scale: Range = (0.0334, 0.1)
    """Height of a line, share of the shorter side of the page; drawn for each block."""
    rows: int = 10
    """Lines of a column at most."""
    columns: int = 3
    """Columns of a block at most."""
    fill: Range = (0.5, 1)
    """Share of the width that the columns of a block take; the rest is gaps."""
    full: float = 0.1
    """Share of blocks that take the whole width."""
    spacing: float = 0.0334
    """Gap between blocks, share of the shorter side of the page."""
    line_fill: Range = (0.5, 1)
    """Share of its column that a line takes."""
    ink: tuple[int, int] = (0, 64)
    """Grey level of the ink, both ends included."""
    coloured: float = 0.2
    """Share of blocks whose ink is a dark colour."""

    jitter: Range = (0, 1)
    """SynthDoG's elastic distortion: pixels by which ink frays, each pixel on its own (sigma below half a pixel)."""
    noise: Range = (0, 8)
    """Standard deviation of the grain, grey levels."""
    perspectives: tuple[tuple[int, tuple[Range, Range, Range, Range]], ...] = PERSPECTIVES
    turn: Range = (0, 0)
    """Degrees by which the page lies askew, clockwise."""
    curl: Range = (0, 0)
    """Largest displacement of the smooth elastic field (a page that bends), share of the page's shorter side."""

    tint: float = 0.2
    """Share of images with a cast of some colour, of strength 0 to 0.2."""
    shadow: tuple[int, int] = (0, 160)
    """Grey levels that the shadow takes from white."""
    contrast: Range = (1, 1.5)
    brightness: Range = (-48, 0)
    """Grey levels added after the contrast."""
    motion_blur: float = 0.5
    """Share of images blurred by 3 or 5 pixels in some direction."""
    blur: Range = (0, 1.5)
    """Sigma in pixels."""

    legible: float = 0.06
    """Sigma of the blurs at most, share of the em of the smallest text; ours, infinity is SynthDoG's: text that nobody
    can read teaches a model to guess."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) == 2 and not value[0] <= value[1]:
                raise ValueError(f"Look.{field.name} is {value}; expected (lowest, highest).")
        if (
            self.short_side[0] < 64
            or self.page_short_side[0] < 64
            or (self.longest is not None and self.longest < 64)
        ):
            raise ValueError(
                "a side of a Look is below 64 pixels; no text can be read there. Give 64 or more."
            )
        if self.rows < 1 or self.columns < 1 or not 0 < self.text_scale[0] <= self.text_scale[1] <= 0.5:
            raise ValueError("a Look needs rows and columns of at least 1, and text_scale within (0, 0.5].")
        if self.curl[1] > 0.05:
            raise ValueError(f"Look.curl is {self.curl}; above 0.05 the page would fold over itself.")


def photograph() -> Look:
    """Pages as a telephone sees them: askew, bent, with smaller text than SynthDoG's; never cut by the image."""
    return Look(
        fullscreen=0.1, page_short_side=(640, 1024), margin=(0.04, 0.1), text_scale=(0.026, 0.06), turn=(-7, 7),
        curl=(0, 0.02), rows=14, spacing=0.025,
    )  # fmt: skip


LOOKS = {"synthdog": Look, "photograph": photograph}
"""Name of a look -> how to make it."""
