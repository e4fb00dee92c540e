"""The radar chart of a score card as inline SVG, like the one of the release's README: one ray per benchmark."""

import math
from collections.abc import Mapping, Sequence

from qwenvl.html import Html, element, join

COLOURS = ("#4363d8", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#469990")
WIDTH, HEIGHT, RADIUS = 760, 560, 200
RINGS = 4


def radar(
    rays: Sequence[str], series: Mapping[str, Sequence[float | None]], tops: Sequence[float | None] = ()
) -> Html:
    """Series of one value per ray; a missing value leaves a gap.

    Each ray ends at its own of `tops`, or at its largest value where that is None.

    Fewer than three rays make no image: the empty string.
    """
    if len(rays) < 3:
        return Html()
    largest = [max((values[k] or 0 for values in series.values()), default=0) or 1 for k in range(len(rays))]
    ends = [top or large for top, large in zip(tops or [None] * len(rays), largest, strict=True)]
    parts = [_ring(len(rays), RADIUS * (r + 1) / RINGS) for r in range(RINGS)]
    for k, name in enumerate(rays):
        x, y = _point(k, len(rays), RADIUS)
        parts.append(element("line", x1=0, y1=0, x2=f"{x:.1f}", y2=f"{y:.1f}", class_="ray"))
        x, y = _point(k, len(rays), RADIUS + 16)
        anchor = "middle" if abs(x) < 20 else "start" if x > 0 else "end"
        at = {"x": f"{x:.1f}", "y": f"{y + 4:.1f}", "text_anchor": anchor}
        parts.append(element("text", f"{name} {ends[k]:.4g}", **at))
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [
            _point(k, len(rays), RADIUS * max(value, 0) / ends[k])
            for k, value in enumerate(values)
            if value is not None
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = {"fill": colour, "fill_opacity": "0.12", "stroke": colour, "stroke_width": "2"}
        parts.append(element("polygon", points=path, **look))
        left, top = -WIDTH / 2 + 10, -HEIGHT / 2 + 20 + 20 * number
        square = {"x": f"{left}", "y": f"{top - 10}", "width": "12", "height": "12"}
        parts.append(element("rect", fill=colour, **square))
        parts.append(element("text", name, x=f"{left + 18}", y=f"{top}"))
    box = f"{-WIDTH / 2} {-HEIGHT / 2} {WIDTH} {HEIGHT}"
    named = {"class_": "radar", "role": "img", "aria_label": "scores as a radar"}
    return element("svg", join(parts), viewBox=box, **named)


def _ring(rays: int, radius: float) -> Html:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_point(k, rays, radius) for k in range(rays)))
    return element("polygon", points=points, class_="ring")


def _point(k: int, rays: int, radius: float) -> tuple[float, float]:
    angle = 2 * math.pi * k / rays - math.pi / 2
    return radius * math.cos(angle), radius * math.sin(angle)
