"""Imports point down: the part that `lint-imports` (layers, in pyproject.toml) cannot say of packages to come."""

import subprocess
import sys
from importlib.util import find_spec

import grimp
import pytest

TORCH_FREE = (
    "qwenvl.config",
    "qwenvl.presets",
    "qwenvl.tokenizer",
    "qwenvl.markup",
    "qwenvl.images",
    "qwenvl.data.clean",
    "qwenvl.data.synth",
    "qwenvl.data.packing",
    "qwenvl.data.formats",
    "qwenvl.evaluation.metrics",
    "qwenvl.cli",
)
"""These are tested in a second and run where torch is not welcome (a cluster's cleaning job, a scoring server).
The command line may import torch inside a function, when the work begins; the others may not at all."""

ONLY_IN = {
    "tyro": {"cli"},
    "rich": {
        "bars",
        "cli",
        "train",
        "parity",
        "demo",
    },  # bars, tables, the demo on screen
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "gradio": {"serve"},
    "transformers": {"integrations"},
    "peft": {"integrations"},
    "lmms_eval": {"integrations"},
    "vllm": {"integrations"},
    "accelerate": {"integrations"},
    "torchao": {"integrations"},
    "bitsandbytes": {"integrations", "model"},
    "tensorboard": {"train"},
    "wandb": {"train"},
    "trackio": {"train"},
    "torchvision": set(),  # its PyPI wheel does not fit a CPU torch: shared facts, dependencies 0.1
    "dashscope": set(),  # only the file qwen.tiktoken inside it is read, by path
}
"""Library -> the packages that may import it."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import of the package, those inside functions too."""
    return grimp.build_graph(
        "qwenvl", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_package(library: str, graph: grimp.ImportGraph) -> None:
    if library not in graph.modules:
        return
    importers = graph.find_modules_that_directly_import(library)
    strangers = {importer for importer in importers if importer.split(".")[1] not in ONLY_IN[library]}
    assert not strangers, f"{library} may be imported only in {sorted(ONLY_IN[library]) or 'no package'}"


@pytest.mark.parametrize("package", [package for package in TORCH_FREE if package != "qwenvl.cli"])
def test_no_chain_of_imports_leads_to_torch(package: str, graph: grimp.ImportGraph) -> None:
    if package not in graph.modules or "torch" not in graph.modules:
        return
    chain = graph.find_shortest_chain(package, "torch", as_packages=True)
    assert chain is None, " imports ".join(chain or ())


def test_importing_the_torch_free_packages_loads_no_torch(graph: grimp.ImportGraph) -> None:
    """What the graph cannot see: a third library that brings torch along."""
    packages = sorted(
        module for module in graph.modules if module.startswith(TORCH_FREE) and find_spec(module)
    )
    program = "\n".join(
        [
            "import sys",
            *(
                f"import {package}; assert 'torch' not in sys.modules, '{package} loads torch'"
                for package in packages
            ),
        ]
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr


def test_nothing_inside_goes_through_the_public_door(graph: grimp.ImportGraph) -> None:
    """`from qwenvl import load` inside the package would hide which module it needs; __version__ alone is fine."""
    for importer in graph.find_modules_that_directly_import("qwenvl"):
        for found in graph.get_import_details(importer=importer, imported="qwenvl"):
            line = found["line_contents"].strip()
            assert not line.startswith("from qwenvl import") or line.endswith("__version__"), (
                f"{importer}: {line}"
            )
