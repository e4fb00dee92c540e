"""Scenes of drawings in English words, to stand where their images would, and what is looked up in them."""

from qwenvl.data.drawings.scenes import Props, Scene
from qwenvl.data.drawings.telling import (
    HOW_MANY,
    IS_THERE,
    WHERE,
    article,
    box,
    groups,
    not_there,
    plural,
    quarter,
)
from qwenvl.data.records import Question, Record
from qwenvl.data.toy.worlds import Dice
from qwenvl.markup import Image


def in_words(scene: Scene, seed: int) -> str:
    """The scene in English words, in random order, to stand where its image would.

    `red key (120,340),(300,520); cat (..); sign BANK (..).`
    """
    side = len(scene.pixels)
    noted = [(f"{thing.ink} {thing.shown.noun}".strip(), box(thing, side)) for thing in scene.things] + (
        [(f"sign {scene.sign.text}", box(scene.sign, side))] if scene.sign else []
    )
    Dice("words", seed, scene.name).shuffle(noted)
    return "; ".join(f"{name} ({at.x1},{at.y1}),({at.x2},{at.y2})" for name, at in noted) + "."


def lookups(scene: Scene, held: Props, image: Image, seed: int) -> tuple[str, list[Record]]:
    """The things of a scene in words, each with its quarter, and every question that is answered by finding one there.

    `key top left; cat bottom right.`
    """
    dice, side = Dice("lookups", seed, scene.name), len(scene.pixels)
    noted = [f"{thing.shown.noun} {quarter(thing, side)}" for thing in scene.things]
    dice.shuffle(noted)
    answers: dict[str, str] = {}
    quarters: dict[str, set[str]] = {}
    for things in groups(scene):
        name, other = things[0].shown.noun, not_there(scene, held, dice).noun
        answers[HOW_MANY.format(plural(name))] = str(len(things))
        answers[IS_THERE.format(article(name))] = "yes"
        answers[IS_THERE.format(article(other))] = "no"
        if len(things) == 1:
            answers[WHERE.format(name)] = quarter(things[0], side)
        for thing in things:
            quarters.setdefault(quarter(thing, side), set()).add(name)
    for place, (name, *others) in quarters.items():
        if not others:
            answers[f"What is at the {place}?"] = name
    asked = list(answers.items())
    dice.shuffle(asked)
    return "; ".join(noted) + ".", [
        Question(image=image, question=question, answer=answer, source="scenes") for question, answer in asked
    ]
