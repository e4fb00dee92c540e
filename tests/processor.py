"""What the processor of this machine is made for: these kernels must pass their trial here, others may."""

import pytest
import torch

from qwenvl.model.nibbles import Nibbles
from qwenvl.model.quantized import Digits
from qwenvl.runtime import multiplies_bfloat16

MADE_FOR = {Digits: torch.cpu._is_vnni_supported(), Nibbles: torch.cpu._is_avx2_supported()}

packs_bfloat16 = pytest.mark.skipif(
    not multiplies_bfloat16(torch.device("cpu")),
    reason="this processor has no instructions for bfloat16, so that torch packs no matrix in it",
)

PACKED = [torch.float32, pytest.param(torch.bfloat16, marks=packs_bfloat16)]
"""Precisions whose matrices are packed here."""
