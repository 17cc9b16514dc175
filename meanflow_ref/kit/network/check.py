"""The preflight: one check after another on one network."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from meanflow_ref._validate import require_finite
from meanflow_ref.convention import Convention
from meanflow_ref.errors import NetworkError
from meanflow_ref.kit.calling import blame, describe
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report
from meanflow_ref.kit.finding import conclude
from meanflow_ref.kit.network import compiled as compiling
from meanflow_ref.kit.network.derivatives import cut_derivatives, rms, time_derivative
from meanflow_ref.kit.network.forward_mode import backward_fails, derivative, obstacles
from meanflow_ref.kit.network.parts import by_module, dead_module, stiffness
from meanflow_ref.kit.network.rows import coupled_rows, random_layers
from meanflow_ref.kit.network.subject import Subject
from meanflow_ref.objectives._inputs import check_inputs, check_values


def check_network(
    net: Callable[..., Any],
    z: Tensor,
    r: Tensor,
    t: Tensor,
    *,
    label: Tensor | None = None,
    call: str | None = None,
    returns: str = "u",
    time_direction: Literal["noise_at_one", "data_at_one"] = "noise_at_one",
    time_shape: Literal["(B,)", "(B, 1)", "broadcast"] = "(B,)",
    compiled: bool | str = False,
    seed: int = 0,
) -> Report:
    """Check whether a network can be trained through a JVP, before it is.

    The network is copied; neither its weights nor its buffers change.

    Args:
        net: A network, or any function; in the mode (training or evaluation) in which the loss will call it.
        z: States, ``(B, *event)``; with B = 1 nothing can be said of rows that are coupled.
        r: Times, ``(B,)``, ``0 <= r <= t``.
        t: Times, ``(B,)``, at most 1.
        label: Labels, ``(B,)``.
        call: How it is called; ``"z, r, t"``, with ``y`` if there are labels.
        returns: What it returns, ``"u"``, ``"u, v"``, ...
        time_direction: ``"data_at_one"`` if its noise is at time 0.
        time_shape: Shape of the times that it is given.
        compiled: Also compile it (a backend's name; True is ``"eager"``) and compare. A compiled network always is.
        seed: Of random layers and of the direction v.

    Returns:
        A report of kind ``"network"``. ``measured["modules"]`` has, for every module, the sizes of the spatial and
        of the time part of du/dt and the error of du/dt against float64.

    Raises:
        NetworkError: If the network cannot be called so, or returns something else than one tensor like z.
        MeanFlowError: If shapes, dtypes or times do not fit together.

    """
    start = time.perf_counter()
    check_inputs({"z": z}, r, t, label)
    check_values({"z": z}, z, z, r, t)
    if not callable(net):
        raise NetworkError(f"the network is {type(net).__name__}.", "a module or a function", "")
    convention = Convention(
        call or ("z, r, t" if label is None else "z, r, t, y"),
        returns=returns,
        time=time_direction,
        time_shape=time_shape,
    )
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
    preflight = _Preflight(Subject(net, convention, z.detach(), r.detach(), t.detach(), v, label, seed))
    preflight.run(compiled)
    return conclude(
        describe(net),
        "network",
        preflight.checks,
        preflight.diagnoses,
        inconclusive=preflight.inconclusive,
        measured=preflight.measured,
        seconds=time.perf_counter() - start,
    )


class _Preflight:
    """Runs the checks in order and keeps what they found."""

    def __init__(self, subject: Subject) -> None:
        self.given, self.subject = subject, subject.copied()
        self.checks: list[CheckResult] = []
        self.diagnoses: list[Diagnosis] = []
        self.measured: dict[str, Any] = {}
        self.inconclusive = False

    def run(self, compiled: bool | str) -> None:
        with blame("the network"), self.subject.prepared(), torch.no_grad():
            u = self.subject.u(self.subject.z, self.subject.r, self.subject.t)
        require_finite(u, "u")
        self.measured["u"] = rms(u)
        self._forward_mode()
        self._rows()
        self._exact()
        self._compile(compiled)

    def _add(self, name: str, found: list[Diagnosis], detail: str = "") -> None:
        status = "passed"
        if found:
            status = "failed" if any(one.severity == "wrong" for one in found) else "noted"
        self.checks.append(CheckResult(name, status, detail))  # type: ignore[arg-type]
        known = {(one.name, one.observed) for one in self.diagnoses}
        self.diagnoses += [one for one in found if (one.name, one.observed) not in known]

    def _skip(self, name: str, reason: str, *, needed: bool = True) -> None:
        self.checks.append(CheckResult(name, "skipped", reason))
        self.inconclusive = self.inconclusive or needed

    def _forward_mode(self) -> None:
        found = obstacles(self.subject)
        self._add("forward mode", found, "; ".join(one.observed for one in found))
        if any(one.name == "ATTENTION_NO_FORWARD_AD" for one in found):
            self.subject = replace(self.subject, math_attention=True)
        with suppress(Exception):
            derivative(self.subject.copied())
            if found_backward := backward_fails(self.subject):
                self._add("backward after the JVP", [found_backward])
            else:
                self._add("backward after the JVP", [])
            return
        self._skip("backward after the JVP", "there is no JVP", needed=False)

    def _rows(self) -> None:
        if len(self.subject.z) > 1:
            coupled = coupled_rows(self.subject)
            known = any(one.name == "BATCH_COUPLING" for one in self.diagnoses)
            self._add("rows are independent", [coupled] if coupled and not known else [], "see forward mode" * known)
        else:
            self._skip("rows are independent", "one row: give two or more")
        random = random_layers(self.subject)
        self._add("evaluations repeat", [random] if random else [])

    def _exact(self) -> None:
        names = ("time derivative", "derivative engines agree", "parts of du/dt by module")
        try:
            exact = self.subject.in_dtype(torch.float64)
            with exact.prepared(), torch.no_grad():
                exact.u(exact.z, exact.r, exact.t)
        except Exception as error:
            for name in names:
                self._skip(name, f"the network does not run in float64: {str(error).splitlines()[0][:120]}")
            return
        try:
            derivative(exact)
        except Exception as error:
            named = any(one.severity == "wrong" for one in self.diagnoses)
            for name in names:
                self._skip(name, f"no forward-mode derivative: {str(error).splitlines()[0][:120]}", needed=not named)
            return
        cut, engines = cut_derivatives(exact, with_time=False)
        found, measured = time_derivative(exact)
        if cut:
            # What is cut in space is cut in time too; only a derivative of 0 is a finding of its own.
            found = [one for one in found if measured["time_part"] < 1e-6 * self.measured["u"]]
        elif not found:
            cut, engines = cut_derivatives(exact, with_time=True)
        if found and (where := dead_module(exact)):
            found = [replace(one, observed=f"{one.observed}; first seen in {where}") for one in found]
        self._add(names[0], found, ", ".join(f"{name} {value:.3g}" for name, value in measured.items()))
        self._add(names[1], cut, f"worst {engines['engines_disagree']:.1e}")
        self.measured |= measured | engines
        self._parts(names[2], exact)

    def _parts(self, name: str, exact: Subject) -> None:
        dtype = self.subject.z.dtype
        rows = by_module(exact, self.subject.in_dtype(dtype, self.subject.t.dtype))
        self.measured["modules"] = rows
        found, measured = stiffness(rows, dtype, self._in_bfloat16(rows))
        self.measured |= measured
        whole = next(row for row in rows if row["module"] == "")
        self._add(name, found, f"spatial {whole['spatial']:.3g}, time {whole['time']:.3g}, error {whole['error']:.1e}")

    def _in_bfloat16(self, rows: list[dict[str, Any]]) -> float | None:
        """Relative error of du/dt with everything, times included, in bfloat16."""
        exact = self.subject.in_dtype(torch.float64)
        low = self.subject.in_dtype(torch.bfloat16)
        with suppress(Exception):
            wanted, got = derivative(exact)[1], derivative(low)[1]
            return rms(got.double() - wanted) / max(rms(wanted), 1e-300)
        return None

    def _compile(self, compiled: bool | str) -> None:
        name = "compiled equals eager"
        if not compiled and not compiling.is_compiled(self.given.net):
            self._skip(name, "not asked for: compiled=True", needed=False)
            return
        backend = compiled if isinstance(compiled, str) else "eager"
        subject = replace(self.given, math_attention=self.subject.math_attention)
        if isinstance(subject.net, nn.Module) and not compiling.is_compiled(subject.net):
            subject = replace(subject.copied(), math_attention=self.subject.math_attention)
        try:
            found, measured = compiling.compare(subject, backend)
        except Exception as error:
            self._skip(name, f"could not be compiled: {str(error).splitlines()[0][:120]}")
            return
        self.measured |= measured
        self._add(name, found, ", ".join(f"{key} {value:.1e}" for key, value in measured.items()))
