"""Why a proof cannot be had."""

from __future__ import annotations

from meanflow_ref.errors import MeanFlowError, NetworkError


class LossError(MeanFlowError, TypeError):
    """A loss that is no loss: it returns no scalar, never calls the network, or takes other arguments."""


class MissingAttributeError(NetworkError, AttributeError):
    """The loss asks the opaque network for an attribute."""


class NotExactError(Exception):
    """Something in the loss has no exact meaning here; ``where`` is the user's ``file:line``, if known."""

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason, self.where = reason, where
        super().__init__(f"{reason} ({where})" if where else reason)
