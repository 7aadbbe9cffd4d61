"""Jobs one after another, or one on each GPU: what is finished is skipped, what was killed goes on.

The queue keeps nothing in memory that it needs: jobs are known by their folders. It may be killed
at any moment, and started again with the same command, or with another that has jobs in common.
"""

import contextlib
import multiprocessing
import os
import shutil
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ban_hf.cli.recipe import quiet_loading
from ban_hf.errors import BANError
from ban_hf.jobs.job import Job
from ban_hf.jobs.networks import RESULTS, make

JOBS, CACHES = "jobs", "teacher_caches"
SAID = "log.txt"  # in a job's folder: what it said while it was at work


class JobsFailed(ValueError):
    """Some jobs failed; all that do not need them are done."""


def is_done(job: Job, output_dir: Path) -> bool:
    """Whether a job's results are there."""
    return (output_dir / JOBS / job.name / RESULTS).is_file()


def do_all(jobs: Sequence[Job], output_dir: Path, workers: int | None = None) -> None:
    """Do the jobs that are not done, each after those it needs.

    Args:
        jobs: see `in_order`.
        output_dir: of all jobs, of these and others; made if it is not there.
        workers: processes at a time: by default one for each GPU, or one. On a CPU they share the
            cores.

    Raises:
        ValueError: if another queue is at work there.
        JobsFailed: naming the jobs, when all that do not need them are done.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(output_dir / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise BANError(
            f"output_dir={output_dir} is being written by another queue: wait for it, or give "
            "another output_dir."
        ) from error
    with lock:  # let go at its end
        queue = _Queue(jobs, output_dir, workers or max(1, torch.cuda.device_count()))
        try:
            failed = queue.run()
        except BrokenProcessPool as error:
            raise JobsFailed(
                "a process died that was doing one of "
                f"{', '.join(job.name for job in queue.running.values())}: was it killed, or out "
                "of memory? The same command goes on from there."
            ) from error
        if failed:
            raise JobsFailed(
                f"{len(failed)} of {len(jobs)} jobs failed (their {SAID} say why); what needs them "
                "was not begun, all else is done, and is not done again: "
                + "; ".join(f"{name}: {error}" for name, error in failed.items())
            )
        shutil.rmtree(output_dir / CACHES, ignore_errors=True)


class _Queue:
    """What waits, what is being done, what has failed."""

    def __init__(self, jobs: Sequence[Job], output_dir: Path, workers: int) -> None:
        self.output_dir, self.total = output_dir, len(jobs)
        self.waiting = {job.name: job for job in jobs if not is_done(job, output_dir)}
        self.workers = max(1, min(workers, len(self.waiting)))
        self.running: dict[Future[None], Job] = {}
        self.failed: dict[str, BaseException] = {}
        students = Counter(job.cache_name for job in jobs)
        self.caches = {
            job.name: output_dir / CACHES / str(job.cache_name)
            for job in jobs
            if job.cache_name and students[job.cache_name] > 1
        }

    def run(self) -> dict[str, BaseException]:
        """Do it all; what failed, with its error."""
        if not self.waiting:
            return {}
        done = self.total - len(self.waiting)
        with (
            _pool(self.workers) as pool,
            tqdm(total=self.total, initial=done, unit="job", dynamic_ncols=True) as bar,
        ):
            try:
                while self._submit(pool):
                    bar.set_postfix_str(", ".join(job.name for job in self.running.values()))
                    for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                        if isinstance(error := future.exception(), BrokenProcessPool):
                            raise error
                        self._end(self.running.pop(future), error)
                        bar.update()
            except KeyboardInterrupt:
                for process in multiprocessing.active_children():
                    process.terminate()  # or the pool would wait for the jobs they are doing
                raise
        return self.failed

    def _submit(self, pool: ProcessPoolExecutor) -> bool:
        """Give the free workers what can be done now; whether anything is being done."""
        undone = self.waiting.keys() | {job.name for job in self.running.values()}
        ready = [job for job in self.waiting.values() if not undone & {b.name for b in job.before}]
        for job in ready[: self.workers - len(self.running)]:
            del self.waiting[job.name]
            future = pool.submit(work, job, self.output_dir, self.caches.get(job.name))
            self.running[future] = job
        return bool(self.running)

    def _end(self, job: Job, error: BaseException | None) -> None:
        if error is None:
            return
        with (self.output_dir / JOBS / job.name / SAID).open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
        self.failed[job.name] = error
        # What needs it would find nothing: nor would what needs that.
        lost = {job.name}
        for name, other in list(self.waiting.items()):  # in order
            if lost & {before.name for before in other.before}:
                lost.add(name)
                del self.waiting[name]


def work(job: Job, output_dir: Path, cache: Path | None) -> None:
    """Do a job in this process; what it says goes to its `log.txt`."""
    folder = output_dir / JOBS / job.name
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / SAID).open("a", buffering=1, encoding="utf-8") as said,  # for `tail -f`
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        make(job, output_dir / JOBS, cache)


def _pool(workers: int) -> ProcessPoolExecutor:
    """Processes that each see one GPU, or have their share of the cores."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
    gpus: SimpleQueue[str] = context.SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    for worker in range(workers):
        known = visible if len(visible) == count else [str(i) for i in range(count)]
        gpus.put(known[worker % count] if count else "")
    threads = max(1, torch.get_num_threads() // workers)
    return ProcessPoolExecutor(workers, context, _begin, (gpus, threads))


def _begin(gpus: "SimpleQueue[str]", threads: int) -> None:
    """Make a fresh process ready for work; it ends with the queue, however that ends."""
    if gpu := gpus.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    else:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_loading()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # not to be asked to finish its job first, which a new queue may begin again
