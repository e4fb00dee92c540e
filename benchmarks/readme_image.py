"""Draw docs/answers.webp: the shipped models' answers about images they have never seen, as `qwenvl demo` asks them.

python benchmarks/readme_image.py [--to docs/answers.webp] [--seed 0] [--font drawings/fonts/FONT]
"""

import argparse
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qwenvl.chat import Assistant
from qwenvl.checkpoint.folder import is_shipped
from qwenvl.demo.asking import Answered, ask_drawings, ask_fresh, side_by_side
from qwenvl.runtime import Runtime

TEXT = 96
"""Pixels below each image for question and answer."""


def panel(answered: Answered, letters: Path | None) -> Image.Image:
    """An image with its question in grey and its answer in black, in the font of a file where there is one."""
    image = answered.drawn()
    sheet = Image.new("RGB", (image.width, image.height + TEXT), "white")
    sheet.paste(image)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(letters, 15) if letters else ImageFont.load_default(15)
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
    parser.add_argument("--font", type=Path, help="of a Chinese font, such as DRAWINGS/fonts has")
    options = parser.parse_args()
    runtime = Runtime.detect(device="cpu")
    rows = [ask_fresh(Assistant.load("tiny", runtime), options.seed)]
    if is_shipped("drawings"):
        rows.insert(0, ask_drawings(Assistant.load("drawings", runtime)))
    sheets = [side_by_side([panel(each, options.font) for each in islice(row, 4)], gap=12) for row in rows]
    whole = Image.new("RGB", (sheets[0].width, sum(each.height for each in sheets)), "white")
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, number * sheet.height))
    whole.save(options.to, quality=88)
    print(options.to)


if __name__ == "__main__":
    main()
