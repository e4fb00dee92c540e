"""`qwenvl demo`: the main job at CPU size."""

from pathlib import Path


def demo(
    *,
    out: Path = Path("runs/demo"),
    recipe: str = "demo",
    images: int = 200,
    processes: int = 2,
    scale: float = 1.0,
    seed: int = 0,
) -> None:
    """Ask the shipped model, train another from scratch, score both on held-out images and write a report.

    Sized for ten minutes on two quiet cores. A demo that was stopped goes on where its training stopped; give another
    --out to start again.

    Args:
        out: Folder of the run; the page is report.html in it.
        recipe: What is trained from scratch: a folder of recipes/ that has a recipe.toml.
        images: Held-out images that both models are scored on.
        processes: Training processes, one core each.
        scale: Factor on the updates of every stage: 0.1 for a quick look.
        seed: Chooses the fresh images that the shipped model is asked about.
    """
    from rich.console import Console
    from rich.markup import escape

    from qwenvl.demo.run import Plan, run
    from qwenvl.terminal import printable

    console = Console()
    report = run(
        Plan(folder=out, recipe=recipe, images=images, processes=processes, scale=scale, seed=seed),
        console,
    )
    console.print(
        f"\nThe report: [bold]{escape(printable(report))}[/bold]\n\nNext:", highlight=False, soft_wrap=True
    )
    console.print("  qwenvl chat tiny IMAGE", highlight=False)
    console.print('  qwenvl ask tiny IMAGE "Where is the red circle?" --out boxes.png', highlight=False)
    console.print("  qwenvl train recipes/tiny --out runs/tiny --processes 2", highlight=False)
