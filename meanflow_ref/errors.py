"""Exceptions. Every message says what was seen, what is wanted, and what to do."""

from __future__ import annotations


class MeanFlowError(Exception):
    """Base of all errors raised on purpose by this library."""

    def __init__(self, seen: str, wanted: str = "", remedy: str = "") -> None:
        self.seen, self.wanted, self.remedy = seen, wanted, remedy
        parts = [seen, f"Wanted: {wanted}" if wanted else "", f"What to do: {remedy}" if remedy else ""]
        super().__init__("\n".join(part for part in parts if part))


class TimeError(MeanFlowError, ValueError):
    """A time is NaN, outside [0, 1], of an integer type, or r > t."""


class ShapeError(MeanFlowError, ValueError):
    """Shapes do not fit together."""


class DtypeError(MeanFlowError, TypeError):
    """Dtypes or devices do not fit together, or are not floating point."""


class ParameterError(MeanFlowError, ValueError):
    """A parameter breaks a law: weights that do not sum to 1, a covariance that is not positive definite, ..."""


class NonFiniteError(MeanFlowError, ValueError):
    """An input has NaN or infinite entries."""


class NetworkError(MeanFlowError, RuntimeError):
    """A network was called and did not behave as an average velocity: wrong shape, dtype or type of output."""


class ForwardADError(MeanFlowError, RuntimeError):
    """An operation inside the network has no forward-mode derivative."""


class TangentError(MeanFlowError, RuntimeError):
    """A tangent could not be followed through the network; going on would have given a wrong derivative."""


class SecondDerivativeError(MeanFlowError, RuntimeError):
    """An operation inside the network has a backward pass that cannot be differentiated."""


class NoClosedFormError(MeanFlowError, NotImplementedError):
    """A field was asked for a closed form that it does not have."""


class TruthError(MeanFlowError, RuntimeError):
    """The ground truth could not be computed to the accuracy asked for."""


class CertificationError(MeanFlowError, RuntimeError):
    """A rigorous enclosure could not be made; the message names the hypothesis that failed."""


class VectorError(MeanFlowError, ValueError):
    """A file of golden vectors is missing, truncated, altered, or of a schema that this version does not read."""


class MissingExtraError(MeanFlowError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package `{module}`, which is not installed.",
            f"the optional dependencies of `meanflow-ref[{extra}]`",
            f'pip install "meanflow-ref[{extra}]"',
        )
        self.extra = extra
