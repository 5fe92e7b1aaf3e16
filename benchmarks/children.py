"""Child processes of the benchmarks, which answer questions on their standard input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ask", "asked", "child"]


@contextmanager
def child(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a module of the benchmarks as a program, with its standard streams as pipes."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield process
        # To leave the block closes the child's standard input, and that ends it.


def ask(process: subprocess.Popen[str], question: str) -> Any:
    """Send a question, and return the answer, which is JSON."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{question}\n")
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError("a child of the benchmark ended; what it said is above")
    return json.loads(answer)


def asked(module: str, *arguments: str) -> Any:
    """Run a module as a program to its end, and return what it prints, which is JSON."""
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE
    )
    return json.loads(run.stdout)
