"""Which tensor has which tangent, kept right under views and in-place writes.

A tangent is keyed by the identity of its tensor and dies with it. A tangent is never written into: an operation makes
a new one. Only where a write reaches a storage that other tensors may share does the storage get a *shadow*, a flat
tangent of all its elements; every tensor of that storage then reads its tangent from the shadow, by its own strides, so
that aliases agree by construction, those included that were made before the first tangent came.

Where only the first rows of a batch move, a tangent may be that of a leading part of one dimension (:class:`Rows`); who
asks for it as a whole is given zeros for the rest.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meanflow_ref.errors import NetworkError, TangentError

_WRITE_CONSTANT = 'write .detach() where a constant is meant, or take jvp="forward_ad"'


class Rows(NamedTuple):
    """The first ``moving`` rows of ``batch`` move: ``moving * m`` places of a dimension of ``batch * m``."""

    moving: int
    batch: int

    def part(self, size: int) -> int:
        """Places of a dimension that move."""
        return size // self.batch * self.moving


class _TensorReference(weakref.ref[Tensor]):
    """Tells the table which entry dies with the tensor."""

    __slots__ = ("index", "region")
    index: int
    region: _Region | None


class _StorageReference(weakref.ref[Any]):
    """Tells the table which region dies with the storage."""

    __slots__ = ("key",)
    key: int


class _Region:
    """What is known of one storage that holds, or held, a tensor with a tangent."""

    __slots__ = ("lost", "members", "origin", "shadow", "storage")

    def __init__(self, origin: int) -> None:
        self.origin = origin
        self.members: set[int] = set()
        self.shadow: Tensor | None = None
        self.storage: Any = None
        # Whether a member died before there was a shadow: what it covered is not known any more.
        self.lost = False

    def alone(self, index: int) -> bool:
        """Whether the tensor is the one that the storage was made for, and no view of it is known."""
        return self.origin == index and self.members == {index}


class _Entry:
    """A tensor's tangent, None for a constant that shares memory with what moves, and the storage it was in.

    Where ``dim`` is not None, the tangent is that of the first places of this dimension, and 0 at the others.
    """

    __slots__ = ("dim", "key", "reference", "tangent")

    def __init__(self, reference: _TensorReference, tangent: Tensor | None, key: int, dim: int | None = None) -> None:
        self.reference, self.tangent, self.key, self.dim = reference, tangent, key, dim


class Tangents:
    """The table. All tensors are taken below autograd."""

    def __init__(self, rows: Rows | None = None) -> None:
        self.rows = rows
        self.entries: dict[int, _Entry] = {}
        self._regions: dict[int, _Region] = {}
        self._shadows: set[int] = set()
        self._tensor_gone, self._storage_gone = _forgetting(self.entries, self._regions, self._shadows)
        # Storages that were allocated and that no operation has been seen to fill.
        self.blank: dict[int, Any] = {}
        # Storages of the function's arguments.
        self._protected: dict[int, str] = {}

    def clear(self) -> None:
        """Forget everything."""
        for table in (self.entries, self._regions, self.blank, self._protected):
            table.clear()
        self._shadows.clear()

    # ---------------------------------------------------------------- reading

    def get(self, x: Any) -> Tensor | None:
        """Tangent of ``x``, None for zero.

        Raises:
            TangentError: If ``x`` shares memory with a tensor that has a tangent in a way that was not seen.

        """
        entry = self.entries.get(id(x))
        if entry is None and not (self._regions and isinstance(x, Tensor)):
            return None
        if entry is not None and entry.key == storage_key(x):
            return entry.tangent if entry.dim is None else self._whole(entry, x)
        region = self._regions.get(storage_key(x))
        if region is not None:
            return self._adopt(x, region)
        if entry is None:
            return None
        raise TangentError(
            f"the memory of a tensor of shape {tuple(x.shape)} that has a tangent was exchanged (`x.data = ...`).",
            "values that are made by operations",
            "give the new values a name of their own",
        )

    def moves(self, x: Tensor) -> bool:
        """Whether ``x`` has a tangent; raises as :meth:`get`."""
        entry, key = self.entries.get(id(x)), storage_key(x)
        if entry is None:
            return key in self._regions and self.get(x) is not None
        return entry.tangent is not None if entry.key == key else self.get(x) is not None

    def known(self, x: Any) -> Tensor | None:
        """Tangent of ``x``, which :meth:`moves` has looked at before."""
        entry = self.entries.get(id(x))
        if entry is None:
            return None
        return entry.tangent if entry.dim is None else self._whole(entry, x)

    def _whole(self, entry: _Entry, x: Tensor) -> Tensor:
        """The tangent of all of ``x``, where that of a part is known and 0 is the rest."""
        part, dim = entry.tangent, entry.dim
        assert part is not None
        assert dim is not None
        whole = torch.zeros(x.shape, dtype=part.dtype, device=part.device)
        whole.narrow(dim, 0, part.shape[dim]).copy_(part)
        entry.tangent, entry.dim = whole, None
        return whole

    def freeze(self, x: Tensor) -> None:
        """Make ``x``, an alias of what moves, a constant: what ``detach`` means."""
        region = self._regions.get(storage_key(x))
        if region is not None:
            self._register(x, None, region)

    def is_frozen(self, x: Any) -> bool:
        """Whether ``x`` is a constant that shares memory with what moves."""
        entry = self.entries.get(id(x))
        return entry is not None and entry.tangent is None

    def shares_memory(self, x: Any) -> bool:
        """Whether some tensor of ``x``'s storage has a tangent, or a write gave it one; ``x`` may be a storage."""
        return (int(x._cdata) if isinstance(x, torch.UntypedStorage) else storage_key(x)) in self._regions

    def share(self, x: Tensor) -> None:
        """Give the storage of ``x`` its shadow."""
        region = self._regions.get(storage_key(x))
        if region is not None:
            self._shadow_of(region, x)

    def reshape_in_place(self, x: Tensor, view: Any, options: tuple[Any, ...]) -> None:
        """Follow an operation that has changed the shape of ``x`` and not its memory, such as ``transpose_``."""
        entry, region = self.entries.get(id(x)), self._regions.get(storage_key(x))
        if entry is None or entry.tangent is None or region is None:
            return
        if region.shadow is not None:
            entry.tangent = _view_of(region.shadow, x)
        else:
            # The shape of x is the new one by now: a part must have been made whole before.
            entry.tangent = view(entry.tangent, *options)

    def _adopt(self, x: Tensor, region: _Region) -> Tensor | None:
        if region.shadow is None or region.lost:
            raise TangentError(
                f"a tensor of shape {tuple(x.shape)} shares memory with one that has a tangent, and where it came from "
                "was not seen.",
                "aliases made by torch operations inside the network",
                _WRITE_CONSTANT,
            )
        tangent = _view_of(region.shadow, x)
        self._register(x, tangent, region)
        return tangent

    # ---------------------------------------------------------------- results of operations

    def put(self, x: Tensor, tangent: Tensor, dim: int | None = None) -> None:
        """Give ``x``, which an operation has just made, its tangent; a view joins the others of its storage.

        Where ``dim`` is given, the tangent is that of the first rows (:attr:`rows`), which lie along this dimension.
        """
        kind = x.dtype
        if not (kind.is_floating_point or kind.is_complex):
            return
        if tangent.dtype != kind:
            tangent = tangent.to(kind)
        shape = x.shape if dim is None else self._shape_of_part(x, dim)
        if tangent.shape != shape:
            tangent = tangent.expand(shape)
        storage = _storage(x)
        if storage is None:
            self._register(x, tangent, None, 0, dim)
            return
        key = storage._cdata
        region = self._regions.get(key)
        if region is None:
            region = self._new_region(id(x), key, storage)
        elif region.shadow is not None:
            tangent, dim = _view_of(region.shadow, x), None
        if self._shadows and region.shadow is None and storage_key(tangent) in self._shadows:
            # A later write to the shadow is none of x's business.
            tangent = tangent.clone()
        self._register(x, tangent, region, key, dim)

    def _shape_of_part(self, x: Tensor, dim: int) -> torch.Size:
        assert self.rows is not None
        return torch.Size((*x.shape[:dim], self.rows.part(x.shape[dim]), *x.shape[dim + 1 :]))

    def view(self, x: Tensor, base: Tensor) -> Tensor | None:
        """Tangent of ``x``, a view of ``base`` that no operation on base's tangent can make (``as_strided``)."""
        region = self._regions.get(storage_key(base))
        if region is None:
            return None
        return _view_of(self._shadow_of(region, base), x)

    def _register(
        self, x: Tensor, tangent: Tensor | None, region: _Region | None, key: int | None = None, dim: int | None = None
    ) -> None:
        index = id(x)
        reference = _TensorReference(x, self._tensor_gone)
        reference.index, reference.region = index, region
        if region is not None:
            region.members.add(index)
        self.entries[index] = _Entry(reference, tangent, storage_key(x) if key is None else key, dim)

    def _new_region(self, origin: int, key: int, storage: Any) -> _Region:
        region = _Region(origin)
        region.storage = reference = _StorageReference(storage, self._storage_gone)
        reference.key = key
        self._regions[key] = region
        return region

    # ---------------------------------------------------------------- writes

    def write(self, x: Tensor, tangent: Tensor | None) -> None:
        """Record that the elements of ``x`` were overwritten by values with this tangent (None: constants)."""
        key = storage_key(x)
        self.blank.pop(key, None)
        region = self._regions.get(key)
        if region is None and tangent is None:
            return
        if region is not None and region.shadow is None and not region.lost and region.alone(id(x)):
            # Nobody else can see what was written.
            self._rebind(x, tangent, key, region)
            return
        if region is None:
            region = self._new_region(-1, key, x.untyped_storage())
        shadow = _view_of(self._shadow_of(region, x), x)
        if tangent is None:
            shadow.zero_()
        else:
            shadow.copy_(tangent)
        self._register(x, shadow, region)

    def _rebind(self, x: Tensor, tangent: Tensor | None, key: int, region: _Region) -> None:
        if tangent is None:
            del self.entries[id(x)]
            del self._regions[key]
            return
        tangent = tangent.to(x.dtype).expand(x.shape)
        if self._shadows and storage_key(tangent) in self._shadows:
            tangent = tangent.clone()
        self._register(x, tangent, region)

    def _shadow_of(self, region: _Region, like: Tensor) -> Tensor:
        """The region's shadow, made now from the tangents of its members if there is none."""
        if region.shadow is not None:
            return region.shadow
        size = like.untyped_storage().nbytes() // like.element_size()
        shadow = torch.zeros(size, dtype=like.dtype, device=like.device)
        moving = []
        for index in region.members:
            entry = self.entries[index]
            member = entry.reference()
            if member is not None and entry.tangent is not None:
                if entry.dim is not None:
                    self._whole(entry, member)
                moving.append((entry, member))
        # Where members overlap their tangents agree, so that the order is no matter.
        for entry, member in moving:
            narrow_shadow, narrow = _without_repeats(_view_of(shadow, member), entry.tangent)
            narrow_shadow.copy_(narrow)
        region.shadow = shadow
        self._shadows.add(storage_key(shadow))
        for entry, member in moving:
            entry.tangent = _view_of(shadow, member)
        return shadow

    def protect(self, x: Tensor, name: str) -> None:
        """Forbid writes into the memory of ``x``, an argument of the function."""
        self._protected[storage_key(x)] = name

    def require_writable(self, x: Tensor, op: Any) -> None:
        """Raise if ``x`` is an argument of the function, or a view of one."""
        name = self._protected.get(storage_key(x))
        if name is not None:
            raise NetworkError(
                f"the network writes into its input {name} by {op}.",
                "a network that leaves its inputs as they are",
                "write out of place, or x = x.clone() first",
            )

    # ---------------------------------------------------------------- memory that nobody was seen to fill

    def allocated(self, x: Tensor) -> None:
        """Note that ``x`` is fresh memory without contents."""
        storage = _storage(x)
        if storage is not None and storage.nbytes():
            key, blank = storage._cdata, self.blank
            blank[key] = weakref.ref(storage, lambda _: blank.pop(key, None))

    def require_filled(self, x: Tensor) -> None:
        """Raise if the contents of ``x`` came from code that torch's dispatcher did not see."""
        if storage_key(x) in self.blank:
            raise TangentError(
                f"a tensor of shape {tuple(x.shape)} was allocated empty and read without any torch operation having "
                "written to it: a kernel (Triton, CUDA or C++) filled it unseen, and its tangent is unknown.",
                "kernels wrapped as operations of torch.library",
                "wrap the kernel with torch.library.custom_op and give the operation a rule by "
                'meanflow_ref.jvp.stopgrad.register_rule, or take jvp="double_backward" or jvp="finite_difference"',
            )


def _forgetting(entries: dict[int, _Entry], regions: dict[int, _Region], shadows: set[int]) -> tuple[Any, Any]:
    """What is done when a tensor, or a storage, of the table dies; closures that do not keep the table itself alive."""

    def tensor_gone(reference: _TensorReference) -> None:
        index, region = reference.index, reference.region
        entry = entries.pop(index, None)
        if region is not None:
            region.members.discard(index)
            region.lost = region.lost or (region.shadow is None and entry is not None and entry.tangent is not None)

    def storage_gone(reference: _StorageReference) -> None:
        gone = regions.pop(reference.key, None)
        if gone is not None and gone.shadow is not None:
            shadows.discard(storage_key(gone.shadow))

    return tensor_gone, storage_gone


def _storage(x: Tensor) -> Any:
    """Storage of ``x``, or None for a tensor that has none (sparse, wrapper subclasses)."""
    try:
        return x.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None


def storage_key(x: Tensor) -> int:
    """Number of the storage of ``x``, 0 if it has none."""
    try:
        return int(x.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return 0


def _view_of(shadow: Tensor, x: Tensor) -> Tensor:
    """The part of a shadow that belongs to ``x``."""
    if x.dtype != shadow.dtype or x.is_conj() or x.is_neg():
        raise TangentError(
            f"a {x.dtype} view of {shadow.dtype} memory that was written in place.",
            "in-place writes through views of one dtype, without lazy conjugation",
            "write out of place, or clone() before",
        )
    return shadow.as_strided(x.shape, x.stride(), x.storage_offset())


def _without_repeats(*tensors: Any) -> list[Tensor]:
    """The tensors with one element of each dimension that the first repeats (stride 0)."""
    first = tensors[0]
    for dim in range(first.dim()):
        if first.stride(dim) == 0 and first.shape[dim] > 1:
            tensors = tuple(t.narrow(dim, 0, 1) for t in tensors)
    return list(tensors)
