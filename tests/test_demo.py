"""The demo runs, and the processes in it see no stale read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


def test_the_demo_sees_no_stale_read() -> None:
    run = subprocess.run(
        [sys.executable, str(DEMO), "--seconds", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout
    found = re.search(r"autosync=True: 0 stale reads of ([0-9,]+)\.", run.stdout)
    assert found is not None, run.stdout
    assert int(found[1].replace(",", "")) > 0
