"""How far a session is with its transaction, and what each savepoint of it did."""

from __future__ import annotations

from sqlalchemy.orm import Session, SessionTransaction

from ..stores.sqlalchemychanges import Before, Changes
from ..stores.writethrough import WriteThrough

__all__ = ["Progress"]


class Progress:
    """How far a session is with its transaction."""

    def __init__(self) -> None:
        #: What was found before a flush, until it is over.
        self.before = Before()
        #: Whether the outermost transaction is being committed.
        self.is_committing = False
        #: The markers, between the two phases.
        self.writing: WriteThrough | None = None
        self.everything = False
        #: Whether the connection has a transaction of its own around the session's.
        self.joined = False
        #: Savepoints that were released, until they have ended.
        self.released: set[SessionTransaction] = set()
        self._changes: dict[SessionTransaction, Changes] = {}

    def current(self, session: Session) -> Changes:
        """Return what the innermost savepoint did, or the transaction."""
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        return self._changes.setdefault(transaction, Changes())

    def take(self, session: Session) -> Changes:
        """Return what the whole transaction did since the last time."""
        transaction = session.get_transaction()
        return self._changes.pop(transaction, Changes()) if transaction else Changes()

    def end_nested(self, transaction: SessionTransaction) -> None:
        """Give what a savepoint did to what is around it, if it was released; else forget it."""
        changes = self._changes.pop(transaction, None)
        outer = transaction.parent
        while outer is not None and not outer.nested and outer.parent is not None:
            outer = outer.parent
        if transaction in self.released and changes is not None and outer is not None:
            self._changes.setdefault(outer, Changes()).merge(changes)
        self.released.discard(transaction)
