"""Which tensor has which tangent, kept right under views and in-place writes.

A tangent is keyed by the identity of its tensor and dies with it. A tangent is never written into: an operation makes
a new one. Only where a write reaches a storage that other tensors may share does the storage get a *shadow*, a flat
tangent of all its elements; every tensor of that storage then reads its tangent from the shadow, by its own strides, so
that aliases agree by construction, those included that were made before the first tangent came.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import NetworkError, TangentError

_WRITE_CONSTANT = 'write .detach() where a constant is meant, or take jvp="forward_ad"'


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
    """A tensor's tangent, None for a constant that shares memory with what moves, and the storage it was in."""

    __slots__ = ("key", "reference", "tangent")

    def __init__(self, reference: weakref.ref[Tensor], tangent: Tensor | None, key: int) -> None:
        self.reference, self.tangent, self.key = reference, tangent, key


class Tangents:
    """The table. All tensors are taken below autograd."""

    def __init__(self) -> None:
        self.entries: dict[int, _Entry] = {}
        self._regions: dict[int, _Region] = {}
        self._shadows: set[int] = set()
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
            return entry.tangent
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

    def known(self, x: Any) -> Tensor | None:
        """Tangent of ``x``, which :meth:`get` has looked at before."""
        entry = self.entries.get(id(x))
        return None if entry is None else entry.tangent

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

    def put(self, x: Tensor, tangent: Tensor) -> None:
        """Give ``x``, which an operation has just made, its tangent; a view joins the others of its storage."""
        if not (x.is_floating_point() or x.is_complex()):
            return
        if tangent.dtype != x.dtype:
            tangent = tangent.to(x.dtype)
        if tangent.shape != x.shape:
            tangent = tangent.expand(x.shape)
        storage = _storage(x)
        if storage is None:
            self.entries[id(x)] = _Entry(weakref.ref(x, self._forget(id(x), None)), tangent, 0)
            return
        key = storage._cdata
        region = self._regions.get(key)
        if region is None:
            region = self._new_region(id(x), key, storage)
        elif region.shadow is not None:
            tangent = _view_of(region.shadow, x)
        if self._shadows and region.shadow is None and storage_key(tangent) in self._shadows:
            # A later write to the shadow is none of x's business.
            tangent = tangent.clone()
        self._register(x, tangent, region, key)

    def view(self, x: Tensor, base: Tensor) -> Tensor | None:
        """Tangent of ``x``, a view of ``base`` that no operation on base's tangent can make (``as_strided``)."""
        region = self._regions.get(storage_key(base))
        if region is None:
            return None
        return _view_of(self._shadow_of(region, base), x)

    def _register(self, x: Tensor, tangent: Tensor | None, region: _Region, key: int | None = None) -> None:
        index = id(x)
        region.members.add(index)
        key = storage_key(x) if key is None else key
        self.entries[index] = _Entry(weakref.ref(x, self._forget(index, region)), tangent, key)

    def _forget(self, index: int, region: _Region | None) -> Any:
        entries = self.entries

        def forget(_: Any) -> None:
            entry = entries.pop(index, None)
            if region is not None:
                region.members.discard(index)
                region.lost = region.lost or (region.shadow is None and entry is not None and entry.tangent is not None)

        return forget

    def _new_region(self, origin: int, key: int, storage: Any) -> _Region:
        region = _Region(origin)
        regions, shadows = self._regions, self._shadows

        def forget(_: Any) -> None:
            gone = regions.pop(key, None)
            if gone is not None and gone.shadow is not None:
                shadows.discard(storage_key(gone.shadow))

        region.storage = weakref.ref(storage, forget)
        regions[key] = region
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
