"""How many scenes of drawings one core composes in a second, and how many records it tells.

    python benchmarks/scenes.py FOLDER      # of `qwenvl data fetch drawings`

Every scene is another one. The first thousands meet drawings that were not decoded yet, and are counted apart.
"""

import sys
import time
from pathlib import Path

from qwenvl.data.drawings.scenes import props, scene
from qwenvl.data.drawings.telling import ASK, records
from qwenvl.markup import Image

WARM, COUNT = 12_000, 3_000

if __name__ == "__main__":
    held = props(Path(sys.argv[1]))
    drawn = sum(map(len, held.drawn.values()))
    print(f"{len(held.order)} nouns, {drawn} drawings")
    began = time.process_time()
    for index in range(COUNT):
        scene(held, 1, index)
    print(f"while drawings are decoded   {COUNT / (time.process_time() - began):7,.0f} scenes/s")
    for index in range(COUNT, WARM):
        scene(held, 1, index)
    speeds = []
    for turn in range(3):
        first = WARM + turn * COUNT
        began = time.process_time()
        for index in range(first, first + COUNT):
            scene(held, 1, index)
        speeds.append(COUNT / (time.process_time() - began))
    print(f"afterwards                   {max(speeds):7,.0f} scenes/s")
    image, made = Image("scene.png"), [scene(held, 2, index) for index in range(1000)]
    began = time.process_time()
    count = sum(len(records(each, held, image, 2, kinds=[*ASK], limit=len(ASK))) for each in made)
    print(f"records about them           {count / (time.process_time() - began):7,.0f} records/s")
