"""What comes back from a question: text, boxes, and how sure the model was."""

from dataclasses import dataclass, field

from PIL import Image as pillow

from qwenvl.drawing import draw_boxes
from qwenvl.generate.choosing import End
from qwenvl.images import RGB, Source, open_image
from qwenvl.markup import Box, Image, Quad, Ref, Segment, Text


@dataclass(frozen=True)
class TokenLogprob:
    """One token and the model's own log-probability of it, before any penalty, warping or grammar."""

    id: int
    spelled: bytes
    """What it writes: at times a part of a character."""
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The likeliest tokens in its place, as many as `top_logprobs` asked for."""

    @property
    def text(self) -> str:
        """What it writes, with U+FFFD for parts of characters."""
        return self.spelled.decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer."""

    text: str
    """As the model wrote it, tags included, white space around it removed."""
    segments: tuple[Segment, ...] = field(repr=False)
    """The same as objects; boxes and quads carry their label and score."""
    images: tuple[Image, ...] = field(default=(), repr=False)
    """All images of the dialogue so far."""
    ground: RGB | None = field(default=None, repr=False)
    """What stood behind their transparency."""
    tokens: int = 0
    """Tokens written, the stop symbol included."""
    end: End = "stop"
    """`length`: there was no room to finish."""
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    """Every token written, with its log-probability."""
    alternatives: tuple["Reply", ...] = field(default=(), repr=False)
    """The other answers, where `n` asked for more than one."""

    @property
    def boxes(self) -> list[Box]:
        """Every box, in order."""
        return [segment for segment in self.segments if isinstance(segment, Box)]

    @property
    def quads(self) -> list[Quad]:
        """Every quadrilateral, in order."""
        return [segment for segment in self.segments if isinstance(segment, Quad)]

    @property
    def plain(self) -> str:
        """The text for a reader: phrases without tags, no coordinates."""
        return "".join(s.text for s in self.segments if isinstance(s, Text | Ref)).strip()

    def draw(self) -> pillow.Image:
        """A copy of the latest image as the model saw it, with the boxes and quads on it.

        Raises ValueError without an image.
        """
        if not self.images:
            raise ValueError("there is no image to draw on; ask with an image.")
        seen = open_image(opened(self.images[-1]), ground=self.ground)
        return draw_boxes(seen, [*self.boxes, *self.quads])


def opened(image: Image) -> Source:
    """What an image of a prompt was given as."""
    return image.source  # type: ignore[return-value]
