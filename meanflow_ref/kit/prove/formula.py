r"""MeanFlow losses in exact or floating-point arithmetic, right and wrong, made of :mod:`meanflow_ref.formulas`.

A :class:`Formula` is a loss written as choices: which velocity, which tangents, which ends of the interval, what is
behind the stop-gradient, which weight. The right one is what the defaults say. Its gradient comes from dual numbers, so
that neither autograd nor a hand-derived cotangent takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from meanflow_ref import formulas
from meanflow_ref.kit.prove import functions
from meanflow_ref.kit.prove.dual import Dual, stop_gradient
from meanflow_ref.kit.prove.guided import Guided
from meanflow_ref.kit.prove.jets import Site
from meanflow_ref.kit.prove.reading import Reading, Row
from meanflow_ref.kit.prove.ring import Number

# Turns an exact number into whatever the formula is evaluated in: itself, or a float.
Reader: TypeAlias = Callable[[Number], Any]
Vector: TypeAlias = list[Dual]


class NotThereError(Exception):
    """A formula that needs noise or guidance where the loss has none."""


@dataclass(frozen=True)
class View:
    """A row with its numbers read as dual numbers."""

    row: Row
    index: int
    guided: Guided | None
    read: Reader

    @property
    def dim(self) -> int:
        """Dimension of the state."""
        return self.row.main.dim

    def plain(self, number: Number) -> Dual:
        """A number that does not depend on the parameter."""
        return Dual(self.read(number))

    @property
    def r(self) -> Dual:
        """Start of the interval."""
        return self.plain(self.row.main.r)

    @property
    def t(self) -> Dual:
        """End of the interval."""
        return self.plain(self.row.main.t)

    @property
    def v(self) -> Vector:
        """Velocity of the sample."""
        return [self.plain(number) for number in self.row.v]

    def u(self, site: Site | None = None) -> Vector:
        """The network's output at an evaluation, by default the trained one."""
        site = self.row.main if site is None else site
        return [Dual(self.read(site.u(i)), self.read(site.du(i, site.dim + 2))) for i in range(site.dim)]

    def partial(self, i: int, a: int) -> Dual:
        """Derivative of component i in input a, at the trained evaluation."""
        site = self.row.main
        return Dual(self.read(site.du(i, a)), self.read(site.d2u(i, a, site.dim + 2)))

    def elsewhere(self, start: str, end: str, label: str = "own") -> Vector:
        """The network's output at the same state, other times (``"r"`` or ``"t"``) and its own or the null label."""
        main = self.row.main
        times = {"r": main.r, "t": main.t}
        if label == "null" and self.guided is None:
            raise NotThereError
        y = main.y if label == "own" or self.guided is None else self.guided.null_label
        return self.u(self.row.site(times[start], times[end], y))

    def scales(self) -> tuple[Dual, Dual, Dual]:
        """``omega``, ``kappa`` and whether this row is guided."""
        if self.guided is None:
            raise NotThereError
        g = self.guided
        return self.plain(g.omega), self.plain(g.kappa), self.plain(g.active[self.index])


# ---------------------------------------------------------------- choices


def sample_velocity(view: View) -> Vector:
    """``v_t`` of the sample. Source: mf:11."""
    return view.v


def opposite_velocity(view: View) -> Vector:
    """``-v_t``."""
    return [-v for v in view.v]


def no_velocity(view: View) -> Vector:
    """Zero."""
    return [Dual(0 * v.value) for v in view.v]


def noise_velocity(view: View) -> Vector:
    """The noise in place of the velocity."""
    if not view.row.noise:
        raise NotThereError
    return [view.plain(noise) for noise in view.row.noise]


def data_velocity(view: View) -> Vector:
    """``noise - v``, the data on the linear path."""
    return [noise - v for noise, v in zip(noise_velocity(view), view.v, strict=True)]


def own_velocity(view: View) -> Vector:
    """The network's own instantaneous velocity, ``u(z, t, t)``. Source: imf:velocity."""
    return view.elsewhere("t", "t")


def _guided(view: View, times: tuple[str, str] = ("t", "t"), **changes: Any) -> Vector:
    omega, kappa, active = view.scales()
    omega, kappa = changes.get("omega", omega), changes.get("kappa", kappa)
    null = view.elsewhere(*times, label=changes.get("null", "null"))
    own = view.elsewhere(*times) if _nonzero(kappa) else [Dual(0 * x.value) for x in null]
    spread = changes.get("spread", 1 - omega - kappa)
    mixed = [
        v + active * (formulas.guided_sample_velocity(v, c, n, omega, kappa) + (spread - (1 - omega - kappa)) * n - v)
        for v, c, n in zip(view.v, own, null, strict=True)
    ]
    return mixed


def _nonzero(scale: Dual) -> bool:
    terms = getattr(scale.value, "terms", None)
    return bool(terms) if terms is not None else scale.value != 0


def guided_velocity(view: View) -> Vector:
    """Equation 21 in the rows that are guided. Source: mf:21."""
    return _guided(view)


def guided_at_r(view: View) -> Vector:
    """Equation 21 with both branches evaluated at ``(z, r, t)``."""
    return _guided(view, ("r", "t"))


def guided_null_at_r(view: View) -> Vector:
    """Equation 21 with the null branch alone evaluated at ``(z, r, t)``."""
    omega, kappa, active = view.scales()
    null = view.elsewhere("r", "t", label="null")
    own = view.elsewhere("t", "t") if _nonzero(kappa) else [Dual(0 * x.value) for x in null]
    return [
        v + active * (formulas.guided_sample_velocity(v, c, n, omega, kappa) - v)
        for v, c, n in zip(view.v, own, null, strict=True)
    ]


def guided_without_kappa(view: View) -> Vector:
    """Equation 21 whose null branch has weight ``1 - omega`` although kappa is not 0."""
    omega, _, _ = view.scales()
    return _guided(view, spread=1 - omega)


def guided_from_null(view: View) -> Vector:
    """Equation 21 with the conditional branch where the null one belongs."""
    return _guided(view, null="own")


def guided_unmixed(view: View) -> Vector:
    """``omega v + (1 + ...)``: the difference to the null branch added to v, ``v + omega (v - u_null)``."""
    omega, _, active = view.scales()
    null = view.elsewhere("t", "t", label="null")
    return [v + active * omega * (v - n) for v, n in zip(view.v, null, strict=True)]


INTERVALS: dict[str, Callable[[Dual, Dual], tuple[Any, Any]]] = {
    "t - r": lambda r, t: (r, t),
    "r - t": lambda r, t: (t, r),
    "t": lambda r, t: (0, t),
    "r": lambda r, t: (0, r),
    "1": lambda r, t: (0, 1),
    "-1": lambda r, t: (1, 0),
    "0": lambda r, t: (0, 0),
    "1 - t": lambda r, t: (t, 1),
    "1 - r": lambda r, t: (r, 1),
    "2 (t - r)": lambda r, t: (2 * r, 2 * t),
    "(t - r)/2": lambda r, t: (r * Fraction(1, 2), t * Fraction(1, 2)),
    "(t - r)^2": lambda r, t: (0, (t - r) * (t - r)),
    "t + r": lambda r, t: (-r, t),
    "t r": lambda r, t: (0, t * r),
}


def jacobian(view: View, i: int, j: int) -> Dual:
    """``d u_i / d z_j``."""
    return view.partial(i, j)


def transposed(view: View, i: int, j: int) -> Dual:
    """``d u_j / d z_i``, as ``grad(u, z, v)`` has it."""
    return view.partial(j, i)


def summed(view: View, i: int, j: int) -> Dual:
    """``grad(u.sum(), z) * v``: the column sums on the diagonal."""
    zero = view.partial(i, j) * 0
    return zero if i != j else _total([view.partial(k, j) for k in range(view.dim)])


def own_partial(view: View, i: int, a: int) -> Dual:
    """``d u_i`` in a time."""
    return view.partial(i, a)


def summed_partial(view: View, i: int, a: int) -> Dual:
    """``grad(u.sum(), t)``: the same number in every component."""
    return _total([view.partial(k, a) for k in range(view.dim)])


@dataclass(frozen=True)
class Weight:
    """The weight of a sample: ``(q S + c)^-p``, q being 1 or one over the event's size.

    ``coupling`` is ``"sample"``, or what is wrong: ``"batch"``, ``"element"``, ``"squared"``. ``form`` is ``"weight"``,
    or a loss with a weighted gradient and no explicit weight: ``"log"``, that is ``log(q S + c)``, and ``"root"``, that
    is ``(q S + c)^-p`` with negative p, whose gradient is that of weight power 1 + p times -p.
    """

    power: Fraction = Fraction(0)
    eps: Fraction = Fraction(0)
    mean: bool = False
    coupling: str = "sample"
    form: str = "weight"


@dataclass(frozen=True)
class Formula:
    """A loss as choices; the defaults are the paper's."""

    velocity: Callable[[View], Vector] = sample_velocity
    tangent: Callable[[View], Vector] | None = None
    dr: int = 0
    dt: int = 1
    interval: str = "t - r"
    jacobian: Callable[[View, int, int], Dual] = jacobian
    time_partial: Callable[[View, int, int], Dual] = own_partial
    # What is not behind the stop-gradient although it should be, or is although it should not.
    leaks: frozenset[str] = frozenset()
    weight: Weight = Weight()

    def derivative(self, view: View) -> Vector:
        """``du/dt`` along the tangents. Source: mf:8."""
        tangent = (self.tangent or self.velocity)(view)
        if "velocity" not in self.leaks and "target" not in self.leaks:
            tangent = [stop_gradient(x) for x in tangent]
        d = view.dim
        return [
            formulas.total_derivative(
                _total([self.jacobian(view, i, j) * tangent[j] for j in range(d)]),
                self.time_partial(view, i, d),
                self.time_partial(view, i, d + 1),
                1,
                self.dr,
                self.dt,
            )
            for i in range(d)
        ]

    def errors(self, view: View) -> Vector:
        """``u - sg(target)``, component by component. Source: mf:9, mf:11."""
        start, end = INTERVALS[self.interval](view.r, view.t)
        targets = [
            self._held(
                formulas.meanflow_target(self._held_part(v, "velocity"), self._held_part(w, "derivative"), start, end)
            )
            for v, w in zip(self.velocity(view), self.derivative(view), strict=True)
        ]
        prediction = [stop_gradient(u) for u in view.u()] if "prediction" in self.leaks else view.u()
        return [u - target for u, target in zip(prediction, targets, strict=True)]

    def _held(self, target: Dual) -> Dual:
        return target if self.leaks & {"target", "velocity", "derivative"} else stop_gradient(target)

    def _held_part(self, part: Dual, name: str) -> Dual:
        return part if self.leaks & {"target", name} else stop_gradient(part)

    def squares(self, reading: Reading, guided: Guided | None, read: Reader) -> list[Vector]:
        """Squared errors of the components, by row. They do not depend on the weight."""
        views = [View(row, b, guided, read) for b, row in enumerate(reading.rows)]
        return [[delta * delta for delta in self.errors(view)] for view in views]

    def weighted(self, squares: list[Vector]) -> Dual:
        """The loss made of them, a sum over each event and a mean over the batch. Source: mf:9, mf:22."""
        inner = Fraction(1, len(squares[0])) if self.weight.mean else 1
        samples = self._samples([[square * inner for square in parts] for parts in squares])
        return _total(samples) * Fraction(1, len(samples))

    def loss(self, reading: Reading, guided: Guided | None, read: Reader) -> Dual:
        """The loss with its derivative in the parameter."""
        return self.weighted(self.squares(reading, guided, read))

    def _samples(self, squares: list[Vector]) -> Vector:
        """One loss a sample from the squared errors of its components."""
        totals = [_named(_total(parts)) for parts in squares]
        weight = self.weight
        if weight.form != "weight":
            return [_primitive(total, weight) for total in totals]
        if weight.power == 0:
            return totals
        if weight.coupling == "element":
            return [_total([self._weigh(part, part) for part in parts]) for parts in squares]
        if weight.coupling == "batch":
            mean = _total(totals) * Fraction(1, len(totals))
            return [self._weigh(total, mean) for total in totals]
        if weight.coupling == "squared":
            return [self._weigh(total, total * total) for total in totals]
        return [self._weigh(total, total) for total in totals]

    def _weigh(self, error: Dual, measure: Dual) -> Dual:
        factor = formulas.adaptive_weight(measure, self.weight.power, self.weight.eps)
        return (factor if "weight" in self.leaks else stop_gradient(factor)) * error


def _primitive(total: Dual, weight: Weight) -> Dual:
    """A loss of one sample whose gradient has the weight built in: ``log(S + c)``, ``(S + c)^(1-p)``."""
    base = total + weight.eps
    if weight.form == "root":
        return base ** (-weight.power)
    value = functions.log(base.value) if isinstance(base.value, Number) else mpmath.log(base.value)
    return Dual(value, base.derivative * base.value**-1)


def _named(x: Dual) -> Dual:
    return Dual(x.value.named(), x.derivative) if isinstance(x.value, Number) else x


def _total(values: list[Dual]) -> Dual:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
