"""Weights in the order in which a product reads them, for answering on a CPU.

Each row of a product then has the same bits however many rows stand beside it, so that answers do not depend on
neighbours and nobody pads rows outside this file. There are two orders:

    PackedLinear   oneDNN's: a matrix is read at the speed of memory instead of being packed at every product
    TurnedLinear   a row for each input: for matrices in float32 that stay in the processor's cache, where starting
                   oneDNN's product takes longer than the product

Packed operators are torch's own but private (inductor's freezing uses them), and which bits a product has is nobody's
promise, so every shape is tried before it is trusted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qwenvl.model.vlm import QwenVL

DTYPES = (torch.float32, torch.bfloat16)
"""Precisions that are packed."""

FEW = 4
"""Rows below which a product may have other bits, and of a large matrix takes no less time."""

LARGE = 2**20
"""Bytes from which a matrix is packed and multiplied by `FEW` rows at least: one row is no faster there."""

PIECES = (192, 256, 384, 512)
"""Inputs whose products a kernel sums up before it adds the sums (MKL: 192, or two halves of up to 384)."""

TRIED = (1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 31, 33, 64)
"""Numbers of rows whose product is held against that of 128 rows."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a model's matrices."""

    packed: int = 0
    """Matrices packed, those of an earlier call included."""
    plain: int = 0
    """Matrices left as they were."""
    reason: str | None = None
    """Why the first of these was left."""

    @property
    def exact(self) -> bool:
        """Whether every row of every product has the same bits whatever the number of rows."""
        return self.packed > 0 and not self.plain


class PackedLinear(nn.Module):
    """`nn.Linear` for answering: its matrix is packed, and nowhere else.

    `state_dict` gives the plain weight, bit for bit; copies and pickles are packed again. Training, moving and loading
    are refused with a ValueError: `unpack_` first.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, least: int) -> None:
        """`least`: the number of rows that fewer are filled up to."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.least = least
        self.register_parameter("bias", bias)
        self.training = False
        self._pack(weight.detach())

    def _pack(self, weight: Float[Tensor, "out width"]) -> None:
        """Keep the matrix, in whatever order."""
        reorder, self._product = _operators()
        self._packed: Tensor = reorder(weight, 8)

    def _plain(self) -> Float[Tensor, "out width"]:
        """The matrix as it was."""
        return self._packed.to_dense()

    def forward(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
        count = rows.numel() // self.in_features
        bias = self._parameters["bias"]  # at a third of the price of `self.bias`
        if count >= self.least:
            return self._product(rows, self._packed, bias, "none", [], "")
        flat = rows.reshape(count, self.in_features)
        filled = flat.expand(self.least, -1) if count == 1 else F.pad(flat, (0, 0, 0, self.least - count))
        product = self._product(filled, self._packed, bias, "none", [], "")
        return product[:count].view(*rows.shape[:-1], self.out_features)

    def plain(self) -> nn.Linear:
        """The layer that was packed."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self._plain())
        layer.register_parameter("bias", self.bias)
        return layer.eval()

    def train(self, mode: bool = True) -> "PackedLinear":
        """Raises ValueError for `mode`: there is no gradient to a packed matrix."""
        if mode:
            raise ValueError(
                "a model packed for answering cannot be trained; call packed.unpack_(model) first."
            )
        return self

    def extra_repr(self) -> str:
        """As `nn.Linear` prints itself."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": self._plain(), "_product": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack(self._packed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        before = torch.empty(0, dtype=self._packed.dtype)
        after = fn(before)
        if (after.device, after.dtype) != (before.device, before.dtype):
            raise ValueError(
                f"a model packed for answering stays on the CPU in {before.dtype}; call packed.unpack_(model) before "
                f"it goes to {after.device} in {after.dtype}."
            )
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._plain()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "a model packed for answering takes no other weights; call packed.unpack_(model) first."
        )


class TurnedLinear(PackedLinear):
    """A small matrix in float32 as a table with a row for each input.

    One row is then a weighted sum of the table (`embedding_bag`), which costs half of what a product of `FEW` rows
    does; more rows are a plain product, filled up to a multiple of `FEW`. Both multiply and add in one order, the
    inputs one after another, and piece by piece.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, piece: int | None) -> None:
        """`piece`: inputs whose products are summed up before the sums are added; None: one row is filled up too."""
        self.piece = piece
        super().__init__(weight, bias, least=1)

    def _pack(self, weight: Float[Tensor, "out width"]) -> None:
        self._packed = weight.T.contiguous()
        self._inputs = torch.arange(self.in_features, dtype=torch.int32)
        self._starts = self._inputs[:: self.piece or self.in_features].contiguous()

    def _plain(self) -> Float[Tensor, "out width"]:
        return self._packed.T.contiguous()

    def forward(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
        count, bias = rows.numel() // self.in_features, self._parameters["bias"]
        if count == 1 and self.piece is not None:
            product = self._one(rows, bias)
        else:
            flat, lack = rows.reshape(count, self.in_features), -count % FEW
            flat = F.pad(flat, (0, 0, 0, lack)) if lack else flat
            product = torch.mm(flat, self._packed) if bias is None else torch.addmm(bias, flat, self._packed)
        return product[:count].view(*rows.shape[:-1], self.out_features)

    def _one(self, row: Float[Tensor, "*one width"], bias: Tensor | None) -> Float[Tensor, "1 out"]:
        sums = F.embedding_bag(
            self._inputs, self._packed, self._starts, mode="sum", per_sample_weights=row.reshape(-1)
        )
        product = sums[:1] if bias is None else bias + sums[:1]
        for place in range(1, len(self._starts)):
            product = product + sums[place : place + 1]
        return product


def pack_(model: QwenVL) -> Report:
    """Pack the matrices of the language model and of the ViT in place, one by one: memory never holds two copies.

    A matrix that is no plain one on the CPU in float32 or bfloat16 (quantised, adapted by LoRA, cut over processes)
    stays what it is, and so do all of a shape that does not pass its trial. The model is for answering then: whoever
    trains it meanwhile must not pack it. Raises ValueError for a model in training mode.
    """
    if model.training:
        raise ValueError("only a model in evaluation mode is packed for answering; call model.eval() first.")
    verdicts: dict[tuple[object, ...], Way | str] = {}
    packed, refused = 0, []
    for parent, name in _matrices(model):
        layer: Any = getattr(parent, name)
        if isinstance(layer, PackedLinear):
            packed += 1
            continue
        verdict: Way | str = _unfit(layer)
        if not verdict:
            shape = (layer.weight.shape, layer.weight.dtype, layer.bias is None)
            if shape not in verdicts:
                verdicts[shape] = _trial(layer)
            verdict = verdicts[shape]
        if isinstance(verdict, str):
            refused.append(verdict)
            continue
        setattr(parent, name, verdict(layer.weight, layer.bias))
        packed += 1
    return Report(packed=packed, plain=len(refused), reason=refused[0] if refused else None)


def unpack_(model: QwenVL) -> None:
    """Plain matrices again, bit for bit, one by one."""
    for parent, name in _matrices(model):
        if isinstance(layer := getattr(parent, name), PackedLinear):
            setattr(parent, name, layer.plain())


def holds_plain(part: nn.Module) -> bool:
    """Whether any matrix of this part is not packed, so that its rows have the same bits in some numbers only."""
    return any(isinstance(layer, nn.Linear) for layer in part.modules())


def _matrices(model: QwenVL) -> list[tuple[nn.Module, str]]:
    """Where every matrix hangs; the adapter's are used in parts (`adapter.third_of`) and left out.

    Names and not the layers, which a list would keep in memory.
    """
    return [
        (parent, name)
        for part in (model.vision, model.llm)
        for parent in part.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear | PackedLinear)
    ]


def _unfit(layer: nn.Linear) -> str:
    """Why this layer is not packed, whatever the kernels; empty for one that may be."""
    weight = layer.weight
    if type(layer) is not nn.Linear or is_traceable_wrapper_subclass(weight):
        return f"{type(layer).__name__} of {type(weight).__name__} is no plain matrix"
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"{weight.dtype} on {weight.device.type} is not packed"
    return ""


Way: TypeAlias = Callable[[Tensor, nn.Parameter | None], PackedLinear]
"""Packs a matrix and its bias."""


def _ways(layer: nn.Linear) -> Iterator[Way]:
    """How this matrix may be packed, the best way first."""
    width = layer.in_features
    if layer.weight.numel() * layer.weight.element_size() >= LARGE:
        yield partial(PackedLinear, least=FEW)
        return
    if layer.weight.dtype == torch.float32:
        pieces = {piece: None for piece in (*PIECES, -(-width // 2), width) if piece <= width}
        for piece in (*pieces, None):
            yield partial(TurnedLinear, piece=piece)
    for least in (1, FEW):
        yield partial(PackedLinear, least=least)


@torch.no_grad()
def _trial(layer: nn.Linear) -> Way | str:
    """The first way in which products are right and those of a row always the same; why not, where there is none."""
    rows = torch.randn(128, layer.in_features, generator=torch.Generator().manual_seed(0)).to(
        layer.weight.dtype
    )
    plain, failure = layer(rows), ""
    for way in _ways(layer):
        try:
            packed = way(layer.weight, layer.bias)
            whole = packed(rows)
            exact = all(torch.equal(packed(rows[:count]), whole[:count]) for count in TRIED)
            back = torch.equal(packed.plain().weight, layer.weight)
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            failure = f"this build of torch does not pack {plain.dtype}: {str(error).splitlines()[0]}"
            continue
        what = f"packed products of {tuple(layer.weight.shape)} in {plain.dtype}"
        distance = (whole - plain).float().norm() / plain.float().norm().clamp(min=1e-30)
        if not back or not distance < 8 * torch.finfo(plain.dtype).eps:
            failure = f"{what} are not those of the plain matrix"
        elif not exact:
            failure = f"{what} depend on the number of rows"
        else:
            return way
    return failure


def _operators() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """What packs a matrix, and what multiplies by one; AttributeError where this torch has them not."""
    return torch.ops.mkldnn._reorder_linear_weight.default, torch.ops.mkldnn._linear_pointwise.default
