"""A recipe as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def launched(recipe: str, *options: str) -> str:
    """What `accelerate launch recipes/RECIPE ...` prints, from the repository's root."""
    accelerate = Path(sys.executable).with_name("accelerate")
    run = subprocess.run(
        [accelerate, "launch", f"recipes/{recipe}", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
