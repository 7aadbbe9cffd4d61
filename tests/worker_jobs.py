"""What a worker does in tests of executors: quick to import, for it is a process of its own."""

import os
import signal
from functools import partial
from pathlib import Path

from ban_hf.jobs.executor import Run
from ban_hf.jobs.job import Job


def run_in(home: Path) -> Run:
    """Does a job by a line in `home/done/FOLDER`."""
    (home / "done").mkdir(exist_ok=True)
    return partial(_run, home=home)


def _run(job: Job, home: Path) -> None:
    print(f"{job.folder} begins")
    for needed in job.needs:
        assert (home / "done" / needed.folder).is_file(), f"{needed.folder} is not done"
    if (home / f"die-{job.folder}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (home / f"fail-{job.folder}").exists():
        raise ValueError(f"{job.folder} is broken")
    with (home / "done" / job.folder).open("a") as file:
        file.write("done\n")
