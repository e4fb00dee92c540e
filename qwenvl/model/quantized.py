"""Linear layers whose weights stay integers in memory, on the best kernels of torch for a CPU.

What a layer computes is said by `integers.Integers`; how, by the first way in `WAYS` that passes a trial on this
machine (docs/EXPERIMENTS.md has the figures):

    Digits    8 bits times two digits of 8 bits of each activation, summed exactly in int32 (oneDNN): weights are read
              once, activations keep 16 bits, and a row has the same bits beside any others
    Nibbles   4 bits by torch's kernel, in bfloat16 (`model.nibbles`)
    Borrowed  nf4 by the kernel of bitsandbytes, where it is installed (`model.borrowed`)
    Plain     the formula: any device, any precision; and what the others are held to

A model packed for answering (`packed.pack_`) takes, where onnxruntime is installed and passes the same trial,

    Blockwise 8 or 4 bits times activations of 8 bits with a scale for each group (`model.blockwise`)

A product that saturates without a word (oneDNN without VNNI) fails its trial, which asks for the largest sums.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from qwenvl.model.blockwise import Blockwise
from qwenvl.model.borrowed import Borrowed
from qwenvl.model.integers import FORMATS, Integers, Kind
from qwenvl.model.nibbles import MANY, Nibbles

ROWS = 256
"""Rows multiplied at a time by 8 bits: two digits of them make int32 sums of twice as many."""

PIECE = 32
"""Rows cut into digits at a time, and their sums put together: in the processor's cache."""

FEW = 4
"""Rows of digits that oneDNN multiplies in less time than two: what is filled up is not read."""

STEPS = 2**15 - 1 - 128
"""Of activations on either side of 0: two digits, each within 128, make no larger number on both."""

MIDDLE = 2**15 + 128.5
"""What 0 is as an unsigned number of two bytes, 128 each, and a half to round by."""


@runtime_checkable
class Store(Protocol):
    """A matrix of integers in the order of one kernel; says `integers` as it was given them."""

    allowed: ClassVar[float]
    """How far a product may be off, of a row's norm: what the precision of the kernel does to activations and sums."""

    def __init__(self, integers: Integers) -> None: ...

    def integers(self) -> Integers:
        """The same integers again."""

    def product(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        """Rows times the matrix; one row at least."""


class Plain:
    """The formula: levels in bytes, or two in a byte, and a weight made of them for every product."""

    allowed: ClassVar[float] = 1e-5

    def __init__(self, integers: Integers) -> None:
        levels = integers.levels
        self.kind, self.scales, self.zeros = integers.kind, integers.scales, integers.zeros
        self.levels = levels if levels.dtype == torch.int8 else levels[:, ::2] | (levels[:, 1::2] << 4)

    def integers(self) -> Integers:
        """The same integers again."""
        levels = self.levels
        if levels.dtype == torch.uint8:
            levels = torch.stack([levels & 15, levels >> 4], dim=2).flatten(1)
        return Integers(kind=self.kind, levels=levels, scales=self.scales, zeros=self.zeros)

    def product(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        """Rows times the matrix, in their own precision."""
        return F.linear(rows, self.integers().dequantised(rows.dtype))


class Digits:
    """8 bits: each activation is a number of 16 bits, 256 times its high byte plus its low one."""

    allowed: ClassVar[float] = 2e-4

    def __init__(self, integers: Integers) -> None:
        if integers.kind != "int8" or integers.zeros is not None or integers.scales.shape[1] != 1:
            raise ValueError("only weights of 8 bits with one scale a row are multiplied digit by digit.")
        self.scales = integers.scales[:, 0].float().contiguous()
        self.none = torch.zeros(len(self.scales), dtype=torch.int32)
        self.packed = torch.ops.onednn.qlinear_prepack.default(integers.levels.contiguous(), None)

    def integers(self) -> Integers:
        """The same integers again."""
        return Integers(kind="int8", levels=self.packed.to_dense().T, scales=self.scales[:, None])

    def product(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        """Rows times the matrix, the sums exact."""
        product = rows.new_empty(len(rows), len(self.scales))
        for few, into in zip(rows.split(ROWS), product.split(ROWS), strict=True):
            self._multiply(few, into)
        return product

    def _multiply(self, rows: Float[Tensor, "rows width"], product: Float[Tensor, "rows out"]) -> None:
        """Writes the product, of as many rows as are multiplied at a time."""
        count, width = rows.shape
        digits, steps = torch.empty(max(FEW, 2 * count), width, dtype=torch.uint8), []
        for few, low, high in _pieces(rows, digits[:count], digits[count : 2 * count]):
            steps.append(_cut(few, low, high))
        sums = torch.ops.onednn.qlinear_pointwise.default(
            digits, 1.0, 128, self.packed, self.scales, self.none, None, 1.0, 0, torch.float32, "none", [], ""
        )
        pieces = _pieces(product, sums[:count], sums[count : 2 * count])
        for (few, low, high), step in zip(pieces, steps, strict=True):
            few.copy_(low.add_(high, alpha=256).mul_(step))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(each.split(PIECE) for each in tensors), strict=True)


def _cut(
    rows: Float[Tensor, "rows width"], low: UInt8[Tensor, "rows width"], high: UInt8[Tensor, "rows width"]
) -> Float[Tensor, "rows 1"]:
    """Writes the two bytes of each activation, 128 for nothing; gives the step of each row."""
    largest = torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True, dtype=torch.float32)
    step = largest.div_(STEPS).clamp_min_(torch.finfo(torch.float32).tiny)
    # What is added makes a whole number of the nearest one below, and of two bytes in a row a number in two digits.
    whole = (rows * (1 / step)).add_(MIDDLE).to(torch.uint16).view(torch.uint8)
    low.copy_(whole[:, ::2])
    high.copy_(whole[:, 1::2])
    return step


WAYS: Mapping[Kind, tuple[Any, ...]] = {
    "int8": (Digits, Plain), "int4": (Nibbles, Plain), "nf4": (Borrowed, Plain)
}  # fmt: skip
"""How a matrix may be multiplied on a CPU, the best way first."""

TRIED = (1, 2, 5, 17, MANY, 130)
"""Numbers of rows whose products are tried."""


def store_of(integers: Integers) -> Store:
    """The integers in the order of the best kernel for them; their memory is the caller's no longer."""
    ways = WAYS[integers.kind] if integers.levels.device.type == "cpu" else (Plain,)
    made: Store = next(way for way in ways if not _fails(way, *_shape(integers)))(integers)
    return made


def _shape(integers: Integers) -> tuple[Kind, int, int, int, bool]:
    return (integers.kind, *integers.levels.shape, integers.group, integers.zeros is not None)


@cache
def _fails(way: Any, kind: Kind, out: int, width: int, group: int, shifted: bool) -> str:
    """Why this way cannot be trusted with matrices of this shape; empty where it can. At most two blocks of rows."""
    if way is Plain:
        return ""
    few = out if out % 64 else 64 * (1 + (out > 64))
    draw = torch.Generator().manual_seed(0)
    integers = _extreme(kind, (few, width), group, shifted, draw)
    rows = torch.randn(max(TRIED), width, generator=draw)
    rows[0], rows[1] = 1.0, torch.where(integers.levels[0] > 0, 1.0, -1.0)
    try:
        store = way(integers)
        again = store.integers()
        if not (torch.equal(again.levels, integers.levels) and torch.equal(again.scales, integers.scales)):
            return "the integers do not come back"
        wanted = rows.double() @ integers.dequantised().double().T
        for count in TRIED:
            off = (store.product(rows[:count]).double() - wanted[:count]).norm(dim=1)
            if not bool((off <= way.allowed * wanted[:count].norm(dim=1)).all()):
                return f"products of {count} rows are not those of the formula"
    except (ImportError, AttributeError, RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).splitlines()[0]
    return ""


def _extreme(
    kind: Kind, shape: tuple[int, int], group: int, shifted: bool, draw: torch.Generator
) -> Integers:
    """Integers at random, of which the first two rows make the largest sums."""
    out, width = shape
    if kind == "int8":
        levels = torch.randint(-127, 128, shape, generator=draw, dtype=torch.int8)
        levels[0], levels[1] = 127, -127
        return Integers(kind="int8", levels=levels, scales=torch.rand(out, 1, generator=draw) + 0.5)
    levels = torch.randint(0, 16, shape, generator=draw, dtype=FORMATS[kind].dtype)
    scales = (torch.rand(out, width // group, generator=draw) + 0.5).bfloat16().float()
    zeros = torch.randint(1, 17, scales.shape, generator=draw, dtype=torch.uint8) if shifted else None
    return Integers(kind=kind, levels=levels, scales=scales, zeros=zeros)


class QuantizedLinear(nn.Module):
    """A frozen linear layer of integers. Gradients pass to its inputs, through the weights that the integers mean.

    `state_dict` gives these weights, as those of a plain layer; it takes none. Moved to another device or precision it
    computes there, its integers stay the same.
    """

    bias: nn.Parameter | None

    def __init__(self, integers: Integers, bias: Tensor | None, dtype: torch.dtype) -> None:
        """`dtype`: of the weights that are meant."""
        super().__init__()
        self.out_features, self.in_features = integers.levels.shape
        self.kind, self.dtype, self.device = integers.kind, dtype, integers.levels.device
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        )
        self.store, self.shape = store_of(integers), _shape(integers)

    @property
    def packs(self) -> bool:
        """Whether there is a faster kernel for answering, which has passed its trial and is not taken yet."""
        on_cpu, packed = self.device.type == "cpu", isinstance(self.store, Blockwise)
        return on_cpu and not packed and not _fails(Blockwise, *self.shape)

    def pack_(self) -> None:
        """Take the order of the kernel that answers fastest, where there is one (`packs`), for products alone.

        Whoever asks for anything else (gradients, weights, a copy, a move) undoes it (`plain_`).
        """
        if not self.packs:
            return
        integers = self.store.integers()
        del self.store  # the head of the full-size model has 600 MB
        self.store = Blockwise(integers)

    def plain_(self) -> Store:
        """Undo `pack_`."""
        if isinstance(self.store, Blockwise):
            self.store = store_of(self.store.integers())
        return self.store

    @property
    def weight(self) -> Float[Tensor, "out width"]:
        """The weights that are meant, made anew."""
        return self.plain_().integers().dequantised(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the integers and what belongs to them."""
        tensors = [each for each in vars(self.store).values() if isinstance(each, Tensor)]
        packed = [each.numel() * each.element_size() for each in tensors]
        unseen = self.store.unseen if isinstance(self.store, Blockwise) else 0
        return sum(packed) + unseen + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
        flat = rows.reshape(-1, self.in_features)
        product = _Product.apply(flat, self) if flat.requires_grad else self.product(flat)
        if (bias := self._parameters["bias"]) is not None:
            product = product + bias
        return product.view(*rows.shape[:-1], self.out_features)

    @torch.no_grad()
    def product(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        """Rows times the weights, without the bias."""
        return self.store.product(rows) if len(rows) else rows.new_empty(0, self.out_features)

    def extra_repr(self) -> str:
        """As `nn.Linear` prints itself, and how it multiplies."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"kind={self.kind}, by={type(self.store).__name__}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "store": self.plain_().integers()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.store = store_of(state["store"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        super()._apply(fn, recurse)
        after = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        self.dtype = after.dtype
        if after.device != self.device:
            self.store, self.device = store_of(self.plain_().integers().to(after.device)), after.device
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "a quantised layer takes no other weights; load the checkpoint that is not quantised."
        )


class _Product(torch.autograd.Function):
    """Rows times a frozen matrix: nothing is kept for the way back but the layer."""

    @staticmethod
    def forward(
        ctx: Any, rows: Float[Tensor, "rows width"], layer: QuantizedLinear
    ) -> Float[Tensor, "rows out"]:
        ctx.layer = layer
        layer.plain_()
        return layer.product(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight.to(gradient.dtype), None


def quantized_in(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantised layers of a model, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, QuantizedLinear)}
