"""What a GPU runs otherwise than a CPU, as far as a CPU can show: masks that are compiled, kernels by preference."""

import pytest
import torch
from torch.nn.attention import sdpa_kernel

from qwenvl.config import VisionConfig
from qwenvl.model import llm, vision
from qwenvl.model.llm import BRANCHES, block_mask
from qwenvl.model.vision import KERNELS, VisionBlock, preferring

pytestmark = pytest.mark.compile


def test_a_mask_is_compiled_once_for_all_rows_of_a_length() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(block_mask, backend="eager", dynamic=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        segments = torch.randint(1, 4, (2, 256), generator=generator).sort(dim=1).values * BRANCHES
        segments += torch.randint(0, 2, (2, 256), generator=generator)
        one, other = compiled(segments), block_mask(segments)
        assert torch.equal(one.to_dense(), other.to_dense())
        second = torch.tensor(1), torch.tensor(0)  # row, head
        places = [torch.arange(256)[:, None], torch.arange(256)[None]]
        assert torch.equal(one.mask_mod(*second, *places), other.mask_mod(*second, *places))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_kernels_are_preferred_on_a_gpu_within_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    block, shown = VisionBlock(VisionConfig(width=32, heads=2, mlp_width=48)), torch.randn(1, 16, 32)
    plain = block(shown)
    seen: list[torch.device] = []

    def preferred(device: torch.device) -> object:
        seen.append(device)
        return sdpa_kernel([*KERNELS], set_priority=True)

    with preferring(torch.device("cuda")):
        assert torch.equal(block(shown), plain), "harmless elsewhere"
    monkeypatch.setattr(vision, "preferring", preferred)
    assert torch.equal(torch.compile(block.forward, backend="eager", fullgraph=True)(shown), plain)
    assert torch.equal(block(shown), plain) and seen[-1] == shown.device


def test_masks_are_compiled_while_something_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of an evaluation have ever new lengths."""
    made: list[str] = []
    monkeypatch.setattr(llm, "block_mask", lambda segments: made.append("plain"))
    monkeypatch.setattr(llm, "_fused_block_mask", lambda: lambda segments: made.append("compiled"))

    class OnGpu:
        is_cuda = True

    segments = torch.ones(1, 8, dtype=torch.long)
    llm.attention_mask(segments, 8, None, OnGpu())  # type: ignore[arg-type]
    with torch.no_grad():
        llm.attention_mask(segments, 8, None, OnGpu())  # type: ignore[arg-type]
    assert made == ["compiled", "plain"]
