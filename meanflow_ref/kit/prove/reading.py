r"""What a traced loss means by its network calls: which one is trained, where its state lies, and on which path.

The state of a row must be a path from data to noise at the time that the network is told,
:math:`z = f(x, t) + \sigma(t)\,\varepsilon` with one noise symbol an
entry. Then its velocity is not looked up but derived: :math:`v = \partial z/\partial t`, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meanflow_ref.kit.prove.calculus import derivative, rebuilt
from meanflow_ref.kit.prove.deciding import is_zero
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.execute import Outcome
from meanflow_ref.kit.prove.jets import TRAINED, Site, Sites
from meanflow_ref.kit.prove.monomial import Coefficient, as_mpf
from meanflow_ref.kit.prove.ring import Number

# How far the clean end of a path may be from data and the noisy one from noise, variance-preserving paths never quite
# ending; and how far the size of the noise there may be from 1.
END_TOLERANCE = 0.05
NOISE_TOLERANCE = 1e-3


class UnreadableError(Exception):
    """A call that is not at a path's state; says why, and what the diagnosis is if there is one."""

    def __init__(self, why: str, name: str = "") -> None:
        self.why, self.name = why, name
        super().__init__(why)


@dataclass(frozen=True)
class Row:
    """One row as the formulas see it.

    Args:
        main: The evaluation that is trained.
        v: Velocity at its state.
        noise: Noise of its state, if there is any.
        sites: All evaluations.
        others: The loss's other evaluations at the same state.

    """

    main: Site
    sites: Sites
    v: tuple[Number, ...]
    noise: tuple[Number, ...]
    others: tuple[Site, ...] = ()

    def site(self, start: Number, end: Number, label: tuple[Number, ...]) -> Site:
        """The evaluation at this state with other times and label, whether or not the loss made it."""
        return self.sites.at(self.main.z, start, end, label, self.main.theta)


@dataclass(frozen=True)
class Reading:
    """All rows, and the path of their states in words."""

    rows: list[Row]
    path: str


def readings(outcome: Outcome, batch: int) -> tuple[list[Reading], list[UnreadableError]]:
    """Every network call that can be read as the trained one, and why the others cannot.

    Calls whose derivative in the parameter makes up the gradient come first; the others are looked at only if none of
    them can be read.
    """
    trained = _trained_sites(outcome.gradient)
    calls = _batches(outcome, batch)
    failures: list[UnreadableError] = []
    for group in (
        _one_a_row(outcome, batch, trained) or [c for c in calls if any(site.index in trained for site in c)],
        [c for c in calls if not any(site.index in trained for site in c)],
    ):
        found = []
        for sites in group:
            try:
                found.append(_read(outcome, sites))
            except UnreadableError as failure:
                failures.append(failure)
        if found:
            return found, failures
    return [], failures


def _one_a_row(outcome: Outcome, batch: int, trained: set[int]) -> list[list[Site]]:
    """The trained evaluations in the order of the rows, if every row has exactly one; in whatever calls they stand."""
    letter = "x" if "x" in outcome.inputs else "z"
    if letter not in outcome.inputs:
        return []
    row_of = {n.only_atom(): b for b in range(batch) for n in outcome.inputs[letter][b].reshape(-1)}
    sites: dict[int, Site] = {}
    for site in outcome.sites.found.values():
        if site.index not in trained:
            continue
        rows = {row_of[i] for n in site.z for i in n.support() if i in row_of}
        if len(rows) != 1 or rows & sites.keys():
            return []
        sites[rows.pop()] = site
    return [[sites[b] for b in range(batch)]] if len(sites) == batch else []


def _batches(outcome: Outcome, batch: int) -> list[list[Site]]:
    """The network's calls, cut into batches."""
    batches: list[list[Site]] = []
    for call in outcome.calls:
        for start in range(0, len(call) - batch + 1, batch):
            if call[start : start + batch] not in batches:
                batches.append(call[start : start + batch])
    return batches


def _trained_sites(gradient: Number | None) -> set[int]:
    """The evaluations whose derivative in the parameter makes up the gradient."""
    if gradient is None:
        return set()
    atoms = (gradient.ring.atoms[i] for i in gradient.atoms())
    return {atom.parent for atom in atoms if atom.parent is not None and atom.head == TRAINED}


def _read(outcome: Outcome, sites: list[Site]) -> Reading:
    everything = {site.index: site for call in outcome.calls for site in call}.values()
    rows, texts = [], []
    for b, site in enumerate(sites):
        if site.theta.key() != outcome.theta.key():
            raise UnreadableError("the network is called with other parameters than its own")
        _require_times(outcome, b, site)
        _require_label(outcome, b, site)
        v, noise, text = _given_velocity(outcome, b, site) or _path(outcome, b, site)
        state = [n.key() for n in site.z]
        others = tuple(s for s in everything if s is not site and [n.key() for n in s.z] == state)
        rows.append(Row(site, outcome.sites, v, noise, others))
        texts.append(text)
    distinct = list(dict.fromkeys(text for row in texts for text in row))
    return Reading(rows, distinct[0] if len(distinct) == 1 else "; ".join(distinct[:3]) + ", by entry")


def _require_times(outcome: Outcome, b: int, site: Site) -> None:
    """Raise unless the network is told the times that the loss was given, if it was given any."""
    times = {letter: outcome.inputs[letter][b].key() for letter in ("r", "t") if letter in outcome.inputs}
    told = {"r": site.r.key(), "t": site.t.key()}
    if times and all(told[letter] == (1 - outcome.inputs[letter][b]).key() for letter in times):
        # Their times are one minus ours; the identity is the same in either.
        return
    if any(told[letter] != key for letter, key in times.items()):
        if times == {"r": told["t"], "t": told["r"]}:
            raise UnreadableError("the network is called with r and t exchanged", "R_AND_T_SWAPPED")
        raise UnreadableError(
            f"the network is called at r = {site.r}, t = {site.t}, not at the given times "
            "(if it counts time in another unit, hand over a loss that leaves the conversion to the network)"
        )


def _require_label(outcome: Outcome, b: int, site: Site) -> None:
    """Raise if the network is told the label of another row, or none although labels were given."""
    if "y" not in outcome.inputs:
        return
    own = outcome.inputs["y"][b].only_atom()
    labels = {label.only_atom() for label in outcome.inputs["y"]}
    told = frozenset[int]().union(*(number.support() for number in site.y)) & labels
    if told - {own}:
        raise UnreadableError("a row is called with the label of another row", "LABEL_OF_ANOTHER_ROW")
    if own not in told:
        raise UnreadableError("the trained call of the network does not depend on the labels", "LABEL_UNUSED")


def _given_velocity(outcome: Outcome, b: int, site: Site) -> tuple[Any, Any, list[str]] | None:
    """State and velocity handed to the loss, if they were."""
    if "v" not in outcome.inputs:
        return None
    if "z" in outcome.inputs and [n.key() for n in site.z] != [n.key() for n in outcome.inputs["z"][b].reshape(-1)]:
        raise UnreadableError("the network is called at another state than the given z")
    return tuple(outcome.inputs["v"][b].reshape(-1)), (), ["given z and v"]


def _path(outcome: Outcome, b: int, site: Site) -> tuple[tuple[Number, ...], tuple[Number, ...], list[str]]:
    velocities, noises, texts = [], [], []
    for i, z in enumerate(site.z):
        noise = _noise(z, site)
        if noise is None:
            _raise_no_noise(z, site)
        assert noise is not None
        if "eps" in outcome.inputs and _law(noise, noise.only_atom()) != "eps":
            raise UnreadableError("the state is made of noise that is drawn, not of the given eps", "NOISE_NOT_GIVEN")
        data = outcome.inputs["x"][b].reshape(-1)[i] if "x" in outcome.inputs else None
        if data is not None and {k for k in z.support() if _law(z, k) == "x"} != {data.only_atom()}:
            raise UnreadableError(f"entry {i} of the state, z = {z}, is not made of the same entry of the data")
        v, text = _entry(z, site.t, noise, data)
        velocities.append(v)
        noises.append(noise)
        texts.append(text)
    return tuple(velocities), tuple(noises), texts


def _law(number: Number, symbol: int) -> str:
    return number.ring.atoms[symbol].law


def _noise(z: Number, site: Site) -> Number | None:
    """The one symbol of noise in an entry of a state, if there is exactly one."""
    times = site.t.support() | site.t.atoms()
    symbols = [i for i in z.support() - times if z.ring.atoms[i].kind == "draw" or _law(z, i) == "eps"]
    return z.ring.atom(symbols[0]) if len(symbols) == 1 and symbols[0] in z.atoms() else None


def _raise_no_noise(z: Number, site: Site) -> None:
    if _noise(z, Site(site.ring, -1, site.z, site.t, site.r, (), site.theta)) is not None and (
        site.r.support() & z.support() and not (site.t.support() - site.r.support()) & z.support()
    ):
        raise UnreadableError(
            "the state lies at the time that the network is told to be r: r and t are exchanged, or `call` is wrong",
            "R_AND_T_SWAPPED",
        )
    if site.t.support() & {i for i in z.support() if _law(z, i) == "normal"}:
        raise UnreadableError("the noise and the times share their draws", "NOISE_TIED_TO_TIMES")
    raise UnreadableError(f"the network is called at z = {z}, which is not a state on a path from data to noise")


def _entry(z: Number, t: Number, noise: Number, data: Number | None) -> tuple[Number, str]:
    """Velocity of one entry of a state, and its path in words."""
    sigma = derivative(z, noise.only_atom())
    rest = z - sigma * noise
    if noise.only_atom() in sigma.support() | rest.support():
        raise UnreadableError(f"z = {z} is not linear in the noise")
    if data is not None:
        for coefficient, other, v, text in (
            (t, 1 - t, noise - data, "z = (1 - t) x + t eps"),
            (1 - t, t, data - noise, "z = t x + (1 - t) eps (data at t = 1)"),
        ):
            if is_zero(sigma - coefficient) and is_zero(rest - other * data):
                return v, text
    affine = t.affine()
    if affine is None:
        raise UnreadableError(f"z = {z} at t = {t} is none of the paths that can be read")
    slope, symbol, constant = affine

    def at(time: Coefficient, number: Number) -> Number:
        place = number.ring.constant((time - constant) / slope)
        return rebuilt(number, lambda i: place if i == symbol else None)

    if symbol not in z.support() | z.atoms():
        _raise_wrong_time(z, t)
    _require_ends(at, sigma, rest, z, t)
    text = f"z = {rest} + ({sigma}) eps".replace(z.ring.atoms[symbol].name, "t")
    return derivative(z, symbol) * (1 / slope), text.replace(str(data), "x") if data is not None else text


def _raise_wrong_time(z: Number, t: Number) -> None:
    raise UnreadableError(
        f"the state does not depend on the time t = {t} that the network is told: r and t are exchanged, "
        "or `call` is wrong",
        "R_AND_T_SWAPPED",
    )


def _require_ends(at: Any, sigma: Number, rest: Number, z: Number, t: Number) -> None:
    """Raise unless a path is all noise at one end of [0, 1] and all data at the other, whatever the data and draws."""
    try:
        noises, states = ([at(time, part) for time in (0, 1, Fraction(1, 2))] for part in (sigma, rest))
        amounts, sizes = ([abs(float(as_mpf(part.value()))) for part in ends] for ends in (noises, states))
    except NotExactError as error:
        raise UnreadableError(f"the ends of the path z = {z} cannot be found ({error.reason})") from error
    noisy = 1 if amounts[1] > amounts[0] else 0
    clean = 1 - noisy
    if any(part.kinds() & {"mask", "draw"} or part.support() & t.support() for part in (*noises, *states)):
        raise UnreadableError(f"z = {z} has another path for other draws")
    if "input" in noises[noisy].kinds():
        raise UnreadableError(f"the size of the noise at the end of the path z = {z} depends on the data")
    if (
        abs(amounts[noisy] - 1) > NOISE_TOLERANCE
        or amounts[clean] > END_TOLERANCE
        or sizes[noisy] > END_TOLERANCE * sizes[clean]
    ):
        raise UnreadableError(f"z = {z} does not lead from data at one end of [0, 1] to unit noise at the other")
