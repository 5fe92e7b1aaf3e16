"""What kazoo's errors mean: an outage, a refusal, and which operation it was that failed."""

from __future__ import annotations

from typing import Any

from kazoo.exceptions import (
    AuthFailedError,
    BadArgumentsError,
    BadVersionError,
    ConnectionClosedError,
    ConnectionLoss,
    InvalidACLError,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    NotReadOnlyCallError,
    OperationTimeoutError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
)

from .zookeeperclient import NotConnectedError
from .zookeeperthreads import OwnThreadError

__all__ = ["REFUSALS", "UNAVAILABLE", "failure_of", "named"]

#: Errors that mean an outage.
UNAVAILABLE = (
    ConnectionLoss,
    ConnectionClosedError,
    SessionExpiredError,
    OperationTimeoutError,
    NotReadOnlyCallError,
    AuthFailedError,
)

#: Errors of a server that has said no: nothing was done, and nothing may still arrive.
REFUSALS = (
    NotConnectedError,
    OwnThreadError,
    NoAuthError,
    NotReadOnlyCallError,
    NoNodeError,
    NodeExistsError,
    NotEmptyError,
    BadVersionError,
    InvalidACLError,
    BadArgumentsError,
    ValueError,
)

#: What the servers mean by errors that come without a text.
REASONS: dict[type[Exception], str] = {
    NoAuthError: "this client may not write its znode",
    NotEmptyError: "its znode has children of its own",
}


def named(error: Exception, key: Any) -> Exception:
    """Return an error with a text that names the key; kazoo's have none."""
    reason = REASONS.get(type(error))
    return error if reason is None or error.args else type(error)(f"key {key!r}: {reason}")


def failure_of(results: list[Any]) -> tuple[int, Exception] | None:
    """Return the operation that failed, and why; the others failed along with it."""
    followed: tuple[int, Exception] | None = None
    for number, error in enumerate(results):
        if isinstance(error, Exception):
            if not isinstance(error, (RolledBackError, RuntimeInconsistency)):
                return number, error
            followed = followed or (number, error)
    return followed
