"""Run the proof: `python -m tests.proof --seconds 120 --seed 1 --backend all`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .allbackends import BACKENDS
from .bugs import BUGS
from .report import lines
from .run import prove


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of faults on each backend")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="all", choices=["all", *BACKENDS])
    parser.add_argument("--bugs", action="store_true", help="see that each seeded bug is caught")
    parser.add_argument("--bug", default="", choices=["", *BUGS], help="put a bug into the library")
    parser.add_argument("--only", nargs="*", default=(), help="beginnings of names of faults")
    parser.add_argument("--keep", type=Path, help="a new folder for the histories")
    options = parser.parse_args()
    names = list(BACKENDS) if options.backend == "all" else [options.backend]
    failed = False
    for name in names:
        result = prove(
            BACKENDS[name](),
            options.seconds,
            options.seed,
            bug=options.bug,
            only=options.only,
            keep=options.keep and options.keep / name,
        )
        print("\n".join(lines(result)), flush=True)
        failed |= bool(result.violations)
    if options.bugs:
        failed |= not _catches_bugs(options.seed)
    return int(failed)


def _catches_bugs(seed: int) -> bool:
    """Tell whether each of the bugs is caught, and print by what."""
    missed = False
    for name, bug in BUGS.items():
        backend, only = BACKENDS[bug.backend](), bug.faults or ("no fault",)
        result = prove(backend, 2 * bug.seconds, seed, bug=name, only=only, enough=bug.is_caught)
        found = sorted({violation.kind for violation in result.violations})
        print(f"seeded bug: {name}: {', '.join(found) or 'NOT CAUGHT'}", flush=True)
        missed |= not set(found) & set(bug.caught_as)
    return not missed


if __name__ == "__main__":
    sys.exit(main())
