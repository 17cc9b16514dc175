"""PyTorch's own database of operations as an oracle: tangents against forward AD, operation by operation, in float64.

Each operation is called on its sample inputs with a tangent on every floating-point tensor among them. A verdict is
``right``, ``refused`` (a clear error with the operation's name) or what is wrong.

With ``pairs``, the same of the compile form's rules, outside a compiler; what a pair does not know, such as a write,
counts as refused.

With ``rows``, the tangents are those of the first places of some dimension (one call in which a part of the batch
moves), and forward AD sees zeros for the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from meanflow_ref.errors import ForwardADError, TangentError
from meanflow_ref.jvp.stopgrad.compiled import Pair
from meanflow_ref.jvp.stopgrad.mode import StopGradMode
from meanflow_ref.jvp.stopgrad.tangents import Rows

# No oracle: results that are memory without contents, or drawn at random (another draw in each run), or undefined
# for rank-deficient samples; and running statistics, which forward AD refuses (they have a test of their own).
_NO_ORACLE = (
    "empty", "rand", "normal", "bernoulli", "multinomial", "linalg.lstsq", "nn.functional.batch_norm", "_native_batch",
    "native_batch_norm", "_batch_norm_with_update", "nn.functional.instance_norm", "cov", "corrcoef", "bfloat16",
    "half", "chalf", "__r", "new_empty", "uniform", "cauchy", "exponential", "geometric", "log_normal",
)  # fmt: skip
SAMPLES = 40
# Their further results are constants to reverse mode.
_STATISTICS = ("native_group_norm", "native_layer_norm")
# Among the first are many of few dimensions, which no rows lie in.
SAMPLES_OF_ROWS = 16


def operations() -> list[Any]:
    """Entries that forward AD can judge in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    database: Any = op_db
    return [
        op
        for op in database
        if op.supports_forward_ad and torch.float64 in op.supported_dtypes("cpu") and not op.name.startswith(_NO_ORACLE)
    ]


def name_of(op: Any) -> str:
    """Name with its variant."""
    return f"{op.name}/{op.variant_test_name}" if op.variant_test_name else str(op.name)


def judge(op: Any, rows: bool = False, pairs: bool = False, layout: str = "usual") -> str:
    """Verdict on an operation, over its samples and over its out-of-place and in-place forms."""
    if layout != "usual" and "as_strided" in op.name:
        return "no oracle"  # it reads memory that no tensor has
    verdicts: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in _samples(op, SAMPLES_OF_ROWS if rows else SAMPLES):
            for form in (op.op, op.inplace_variant):
                if form is not None:
                    seeds = range(1, 7) if rows else (0,)
                    verdicts |= {_judge_call(form, sample, seed, pairs, _LAYOUTS[layout]) for seed in seeds}
    for verdict in verdicts - {"right", "refused", ""}:
        return verdict
    return "refused" if "refused" in verdicts else "right" if "right" in verdicts else "no oracle"


def _samples(op: Any, number: int) -> Iterator[Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            samples = list(islice(op.sample_inputs("cpu", torch.float64, requires_grad=False), number))
        except Exception:
            return
    yield from samples


def _judge_call(
    form: Callable[..., Any], sample: Any, seed: int, pairs: bool, copied: Callable[[Tensor], Tensor]
) -> str:
    arguments = (sample.input, sample.args, sample.kwargs)
    leaves = [x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor) and x.is_floating_point()]
    generator = torch.Generator().manual_seed(seed)
    along = {id(x): torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in leaves}
    rows, dims = _draw_rows(leaves, along, generator) if seed else (None, {})
    if seed and rows is None:
        return ""
    try:
        expected = _by_forward_ad(form, arguments, along, copied)
    except Exception:
        return ""  # forward AD has no answer for this sample
    try:
        found = (
            _by_pairs(form, arguments, along, copied) if pairs else _by_mode(form, arguments, along, rows, dims, copied)
        )
    except (TangentError, ForwardADError) as error:
        return "refused" if str(error) else "a refusal that says nothing"
    except Exception as error:
        if pairs and "Pair" in str(error):
            return "refused"  # by Python: what takes tensors alone, or an attribute that a pair does not have
        return f"{type(error).__name__}: {str(error)[:160]}"
    if rows is not None:
        # 0 times what is not finite: forward AD sees nan where a row does not move, the mode sees nothing.
        expected = [
            e if f is None or e is None else e.where(~((f == 0) & e.isnan()), 0)
            for e, f in zip(expected, found, strict=True)
        ]
    if getattr(form, "__name__", "") in _STATISTICS:
        expected, found = expected[:1], found[:1]
    return _compare(expected, found)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x.clone()


def _stepped(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


# How the numbers of a copy lie in memory.
_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": torch.clone, "transposed": _transposed, "stepped": _stepped,
}  # fmt: skip


def _by_forward_ad(
    form: Any, arguments: Any, along: dict[int, Tensor], copied: Callable[[Tensor], Tensor]
) -> list[Tensor | None]:
    with forward_ad.dual_level():

        def dual(x: Any) -> Any:
            if id(x) not in along:
                return x.clone() if isinstance(x, Tensor) else x  # an in-place form may write into it
            return forward_ad.make_dual(copied(x), along[id(x)].clone())  # type: ignore[no-untyped-call]

        out = _call(form, pytree.tree_map(dual, arguments))
        return [
            forward_ad.unpack_dual(x).tangent if isinstance(x, Tensor) else None  # type: ignore[no-untyped-call]
            for x in pytree.tree_leaves(out)
        ]


def _draw_rows(
    leaves: list[Tensor], along: dict[int, Tensor], generator: torch.Generator
) -> tuple[Rows | None, dict[int, int]]:
    """A batch size and, for each leaf, the dimension along which it moves in part, if any.

    What does not move is set to 0 in ``along``, or taken out of it.
    """
    sizes = [size for x in leaves for size in x.shape if size > 1]
    if not sizes:
        return None, {}

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    batch = sizes[draw(len(sizes))]
    rows, dims = Rows(1 + draw(batch - 1), batch), {}
    for x in leaves:
        fits = [d for d, size in enumerate(x.shape) if size and size % batch == 0]
        if fits and draw(4):
            dim = dims[id(x)] = fits[0] if draw(2) else fits[draw(len(fits))]
            along[id(x)].narrow(dim, rows.part(x.shape[dim]), x.shape[dim] - rows.part(x.shape[dim])).zero_()
        elif draw(2):
            del along[id(x)]
    return (rows, dims) if dims else (None, {})


def _by_mode(
    form: Any,
    arguments: Any,
    along: dict[int, Tensor],
    rows: Rows | None,
    dims: dict[int, int],
    copied: Callable[[Tensor], Tensor],
) -> list[Tensor | None]:
    copies: list[tuple[Tensor, Tensor, int | None]] = []

    def copy(x: Any) -> Any:
        if id(x) not in along:
            return x.clone() if isinstance(x, Tensor) else x
        tangent, dim = along[id(x)], dims.get(id(x))
        if rows is not None and dim is not None:
            tangent = tangent.narrow(dim, 0, rows.part(x.shape[dim])).clone()
        copies.append((copied(x), tangent, dim))
        return copies[-1][0]

    given = pytree.tree_map(copy, arguments)
    mode = StopGradMode(rows)
    for x, tangent, dim in copies:
        mode.tangents.put(x, tangent, dim)
    with mode:
        out = _call(form, given)
        return [mode.tangents.get(x) if isinstance(x, Tensor) else None for x in pytree.tree_leaves(out)]


def _by_pairs(
    form: Any, arguments: Any, along: dict[int, Tensor], copied: Callable[[Tensor], Tensor]
) -> list[Tensor | None]:
    def pair(x: Any) -> Any:
        if id(x) not in along:
            return x.clone() if isinstance(x, Tensor) else x
        return Pair(copied(x), along[id(x)].clone())

    out = _call(form, pytree.tree_map(pair, arguments))
    return [x._paired_tangent if isinstance(x, Pair) else None for x in pytree.tree_leaves(out)]


def _call(form: Any, arguments: Any) -> Any:
    first, args, kwargs = arguments
    torch.manual_seed(0)
    return form(first, *args, **kwargs)


def _compare(expected: list[Tensor | None], found: list[Tensor | None]) -> str:
    for e, f in zip(expected, found, strict=True):
        nothing = e is None or e.numel() == 0 or not bool((e != 0).any())
        if f is None:
            if not nothing:
                return "silent zero"
        elif e is None:
            if f.numel() and bool((f != 0).any()):
                return "a tangent where forward AD has none"
        elif f.shape != e.shape or not torch.allclose(f.to(e.dtype), e, rtol=1e-7, atol=1e-9, equal_nan=True):
            return "silent mismatch"
    return "right"
