"""What a run has to say: how many operations, faults of each kind, and violations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .run import Result

__all__ = ["lines"]

#: Of each kind of violation so many are shown, and the others counted.
SHOWN = 5


def lines(result: Result) -> Iterator[str]:
    """Give the lines of the report of one run."""
    history = result.history
    writes = Counter(f"{op.kind}, {op.outcome}" for op in history.operations if op.kind != "read")
    processes = {op.process for op in history.operations} - {"the store"}
    yield (
        f"{result.backend}: {history.calls} operations of {len(processes)} processes in "
        f"{result.seconds:.0f} s, {sum(result.faults.values())} faults, "
        f"{len(history.copies)} copies compared, {len(result.violations)} violations"
    )
    reads = sum(op.kind == "read" for op in history.operations)
    yield f"  keys read: {reads}; keys written: " + "; ".join(
        f"{what}: {number}" for what, number in sorted(writes.items())
    )
    failed = sum(history.failed_reads.values())
    kinds = ", ".join(sorted(history.failed_reads)) or "-"
    yield f"  reads and syncs that raised: {failed} ({kinds})"
    losing = {fault.name for fault in history.faults if fault.loses}
    blind = {fault.name for fault in history.faults if fault.blind}
    for name, number in sorted(result.faults.items()):
        effect = "may lose the tail" if name in losing else "keeps everything"
        effect += ", reads promise less meanwhile" if name in blind else ""
        yield f"  {number:4} x {name} ({effect})"
    shown = Counter[str]()
    for violation in result.violations:
        shown[violation.kind] += 1
        if shown[violation.kind] <= SHOWN:
            yield f"  VIOLATION: {violation}"
    for kind, number in shown.items():
        if number > SHOWN:
            yield f"  VIOLATION: {kind}: {number - SHOWN} more"
