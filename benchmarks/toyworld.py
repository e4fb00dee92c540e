"""How fast one core makes training material of the toy world: `python benchmarks/toyworld.py [--scenes 3000]`."""

import argparse
import time
from collections.abc import Callable

from qwenvl.data.toy.chats import chat
from qwenvl.data.toy.labels import dense_labels
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.tasks import tasks
from qwenvl.data.toy.worlds import scene


def rate(make: Callable[[int], int], repeats: int) -> float:
    """Things made per second of this process' CPU time, after a short warm-up that fills the caches."""
    for k in range(200):
        make(k)
    start = time.process_time()
    made = sum(make(k) for k in range(repeats))
    return made / (time.process_time() - start)


def main() -> None:
    """Prints one line per product."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=3000, help="scenes per measurement")
    number = parser.parse_args().scenes
    scenes = [scene(0, index) for index in range(max(number, 201))]
    products: dict[str, Callable[[int], int]] = {
        "scenes": lambda k: bool(scene(1, k)),
        "images at 112 px, painted": lambda k: len(render(scenes[k])) // 112,
        "images at 112 px, drawn and painted": lambda k: len(render(scene(1, k))) // 112,
        "images at 224 px, drawn and painted": lambda k: len(render(scene(1, k), 224)) // 224,
        "tasks, all kinds": lambda k: len(tasks(scenes[k], 0)),
        "tasks, six of a scene": lambda k: len(tasks(scenes[k], 0, limit=6)),
        "dense labels, 8 x 8": lambda k: len(dense_labels(scenes[k], 8).shape) // 8,
        "chats about an image (112 px painted)": lambda k: len(chat([scenes[k]], 0)) > 0,
    }
    for name, make in products.items():
        print(f"{rate(make, number):>10,.0f} {name} per second of one core")


if __name__ == "__main__":
    main()
