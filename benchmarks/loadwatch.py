"""Runs the readers of `make load` beside one writer, and says what they saw."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import ExitStack
from typing import Any

from .children import child
from .loadreaders import Place, opened

__all__ = ["run_readers"]

#: Seconds between two writes.
PAUSE = 0.02


def run_readers(
    place: Place, readers: int, most_processes: int, megabytes: int, seconds: float
) -> list[str]:
    """Have so many read while one writes; return what was wrong.

    :param most_processes: how many of them may be processes of their own
    :param megabytes: that these may have; those that do not fit are threads of one more process,
        each with connections of its own
    :param seconds: that they read

    """
    with ExitStack() as stack:
        # What one takes tells how many fit.
        children = [stack.enter_context(_reader(place, 1))]
        first = _line(children[0])
        fitting = max(1, megabytes * 1_000_000 // first["memory"])
        processes = min(readers, most_processes, fitting)
        children += [stack.enter_context(_reader(place, 1)) for _ in range(processes - 1)]
        threads = readers - processes
        if threads:
            children.append(stack.enter_context(_reader(place, threads)))
        began = [first, *map(_line, children[1:])]
        writes = _write(place, seconds)
        ended = [_end(each) for each in children]
    reads = sum(each["reads"] for each in ended)
    print(
        f"\n{place.store}: {processes} readers in processes of their own, {threads} as connections "
        f"of one more, for {seconds:.0f} s: {reads:,} strict reads beside {writes:,} writes.\n"
        f"A process has {first['memory'] / 1e6:.1f} MB of its own and {first['descriptors']} "
        f"descriptors; all have {sum(each['memory'] for each in began) / 1e6:,.0f} MB."
    )
    return _problems(place, ended)


def _problems(place: Place, ended: list[dict[str, Any]]) -> list[str]:
    problems = []
    for each in ended:
        if each["back"]:
            problems.append(f"{place.store}: {each['back']} reads went back")
        if each["errors"]:
            problems.append(f"{place.store}: readers failed: {', '.join(each['errors'])}")
        if each["threads"]:
            problems.append(f"{place.store}: threads are left: {', '.join(each['threads'])}")
        if not each["reads"]:
            problems.append(f"{place.store}: a reader read nothing")
    return problems


def _write(place: Place, seconds: float) -> int:
    ends = time.monotonic() + seconds
    with opened(place, autosync=False) as d:
        writes = 0
        while time.monotonic() < ends:
            d.compute("count", lambda count: count + 1)
            writes += 1
            time.sleep(PAUSE)
    return writes


def _reader(place: Place, number: int) -> Any:
    return child("benchmarks.loadreaders", *place, str(number))


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a reader ended; what it said is above")
    told: dict[str, Any] = json.loads(line)
    return told


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.close()
    return _line(process)
