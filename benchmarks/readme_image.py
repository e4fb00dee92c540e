"""Draw docs/answers.webp: the shipped model's answers about images it has never seen, as `qwenvl demo` asks them.

python benchmarks/readme_image.py [--to docs/answers.webp] [--seed 0]
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qwenvl.chat import Assistant
from qwenvl.demo.run import Answered, ask_fresh, side_by_side
from qwenvl.runtime import Runtime

TEXT = 96
"""Pixels below each image for question and answer."""


def panel(answered: Answered) -> Image.Image:
    """An image with its question in grey and its answer in black."""
    image = answered.drawn()
    sheet = Image.new("RGB", (image.width, image.height + TEXT), "white")
    sheet.paste(image)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    lines = [(line, "#777777") for line in wrapped(answered.asked, image.width - 8, pen, font)]
    lines += [(line, "black") for line in wrapped(answered.reply.plain.strip(), image.width - 8, pen, font)]
    for row, (line, colour) in enumerate(lines[:5]):
        pen.text((4, image.height + 6 + 18 * row), line, colour, font)
    return sheet


def wrapped(
    text: str, width: int, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    """The words in lines no wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs" / "answers.webp")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    assistant = Assistant.load("tiny", Runtime.detect(device="cpu"))
    panels = [panel(each) for each, _ in zip(ask_fresh(assistant, options.seed), range(4), strict=False)]
    side_by_side(panels, gap=12).save(options.to, quality=88)
    print(options.to)


if __name__ == "__main__":
    main()
