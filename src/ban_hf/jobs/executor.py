"""Where jobs run: in this process, or in processes that each have a GPU or a share of the cores.

`run_jobs` hands a graph to an executor, each job with the jobs that it needs. It keeps nothing in
memory that it needs later: jobs are known by their folders. It may be killed at any moment and
started again with the same command, or with another that shares some of the jobs.
"""

import contextlib
import functools
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal, Protocol

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ban_hf.errors import BANError
from ban_hf.jobs.job import Job

Run = Callable[[Job], None]  # does a job, whose needed jobs are finished
POLL = 0.1  # seconds between two looks at the running jobs


class JobsFailed(BANError):
    """Some jobs failed; all that do not need them are done."""


@dataclass(frozen=True)
class State:
    """What became of a job; `error` of one that failed."""

    status: Literal["waiting", "running", "done", "failed"]
    error: BaseException | None = None


LOST = State("failed", BANError("a job that it needs failed"))


class Executor(Protocol):
    """Runs jobs. An existing engine (a scheduler of a cluster) fits behind these three methods."""

    def submit(self, job: Job, after: Sequence[Job]) -> None:
        """Take a job, to be run when the jobs in `after`, submitted earlier, are done."""

    def state(self, job: Job) -> State:
        """What became of a job that was submitted."""

    def cancel(self, job: Job) -> None:
        """Drop a job that waits, stop one that runs."""


class InProcess:
    """Runs each job at once, in this process.

    On several processes (torchrun, accelerate) each of them runs the same jobs in step.

    Args:
        run: does a job.
        keep_going: whether a job that fails leaves the others to be done; else its error ends all.
    """

    def __init__(self, run: Run, *, keep_going: bool = False) -> None:
        self.run, self.keep_going = run, keep_going
        self.states: dict[str, State] = {}

    def submit(self, job: Job, after: Sequence[Job]) -> None:
        if any(self.state(each).status == "failed" for each in after):
            self.states[job.folder] = LOST
            return
        try:
            self.run(job)
        except Exception as error:
            if not self.keep_going:
                raise
            traceback.print_exception(error)
            self.states[job.folder] = State("failed", error)
        else:
            self.states[job.folder] = State("done")

    def state(self, job: Job) -> State:
        return self.states.get(job.folder, State("waiting"))

    def cancel(self, job: Job) -> None:
        """Nothing: no job waits or runs between two calls."""


class Workers:
    """Runs jobs in processes of their own, each with one GPU, or with its share of the cores.

    What a job prints, and why it failed, goes to `LOGS/FOLDER.txt`. The processes end with this.

    Args:
        run: must be picklable: a function of a module, or a `functools.partial` of one.
        count: of processes; jobs take the GPUs in turn.
        logs: folder of the jobs' output.
    """

    def __init__(self, run: Run, count: int, logs: Path) -> None:
        self.run, self.count, self.logs = run, count, logs
        self.waiting: dict[str, tuple[Job, set[str]]] = {}
        self.futures: dict[str, Future[None]] = {}
        self.lost: set[str] = set()  # jobs that need one that failed
        self.pool = _pool(count)

    def submit(self, job: Job, after: Sequence[Job]) -> None:
        self.waiting[job.folder] = job, {each.folder for each in after}
        self._start()

    def state(self, job: Job) -> State:
        self._start()
        if job.folder in self.lost:
            return LOST
        future = self.futures.get(job.folder)
        if future is None:
            return State("waiting")
        if not future.done():
            return State("running" if future.running() else "waiting")
        error = self._error(job.folder)
        return State("done") if error is None else State("failed", error)

    def cancel(self, job: Job) -> None:
        self.waiting.pop(job.folder, None)
        future = self.futures.get(job.folder)
        if future is not None and not future.cancel():
            for process in multiprocessing.active_children():
                process.terminate()  # a pool cannot stop one job: all end, and go on when run again

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown(cancel_futures=True)

    def _error(self, folder: str) -> BaseException | None:
        future = self.futures[folder]
        return future.exception() if future.done() else None

    def _start(self) -> None:
        """Hand over what can be done now: no more than there are free processes."""
        busy = sum(not future.done() for future in self.futures.values())
        finished = {f for f, future in self.futures.items() if future.done() and not self._error(f)}
        failed = self.lost | {f for f in self.futures if self._error(f)}
        for folder, (job, after) in list(self.waiting.items()):
            if after & failed:
                del self.waiting[folder]
                self.lost.add(folder)
                failed.add(folder)
            elif busy < self.count and after <= finished:
                del self.waiting[folder]
                try:
                    future = self.pool.submit(_work, self.run, job, self.logs)
                except BrokenProcessPool as error:  # another job's process died
                    future = Future()
                    future.set_exception(error)
                future.add_done_callback(functools.partial(self._log, folder))
                self.futures[folder] = future
                busy += 1

    def _log(self, folder: str, future: "Future[None]") -> None:
        """Write why a job failed into its log."""
        if not future.cancelled() and (error := future.exception()) is not None:
            with (self.logs / f"{folder}.txt").open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor,
    is_done: Callable[[Job], bool],
    on_finished: Callable[[Job], None] = lambda job: None,
    *,
    progress: bool = False,
) -> None:
    """Run the jobs that are not done, each after those that it needs.

    Args:
        jobs: in order, see `in_order`.
        executor: where they run.
        is_done: whether a job was finished earlier.
        on_finished: called for each job in order, also for one that was finished earlier.
        progress: whether to show a bar.

    Raises:
        BANError: if a job needs one that is neither done nor before it.
        JobsFailed: naming the jobs that failed, when all that do not need them are done.
    """
    done = {job.folder for job in jobs if is_done(job)}
    missing = [job for job in jobs if job.folder not in done]
    reported, known = 0, set(done)
    for job in missing:
        for each in job.needs:
            if each.folder not in known and not is_done(each):
                raise BANError(
                    f"job {job.folder} needs {each.folder}, which is neither done nor before it."
                )
        known.add(job.folder)
    bar = tqdm(total=len(jobs), initial=len(done), unit="job", disable=not progress)
    with bar:
        pending: list[Job] = []
        try:
            for job in jobs:
                if job.folder not in done:
                    executor.submit(job, [each for each in job.needs if each.folder not in done])
                    pending.append(job)
                    if executor.state(job).status == "done":
                        pending.remove(job)
                        bar.update()
                if not pending:
                    on_finished(job)
                    reported += 1
            failed: dict[str, BaseException | None] = {}
            while pending:
                for job in list(pending):
                    state = executor.state(job)
                    if state.status in ("done", "failed"):
                        pending.remove(job)
                        bar.update()
                    if state.status == "failed":
                        failed[job.folder] = state.error
                bar.set_postfix_str(", ".join(job.folder for job in pending[:3]))
                time.sleep(POLL if pending else 0)
        except BaseException:
            for job in pending:
                executor.cancel(job)
            raise
    if failed:
        raise JobsFailed(_failure(failed, len(missing)))
    for job in jobs[reported:]:
        on_finished(job)


def _failure(failed: dict[str, BaseException | None], count: int) -> str:
    """What failed and why, in one sentence."""
    if any(isinstance(error, BrokenProcessPool) for error in failed.values()):
        return (
            f"a process died while it ran one of {', '.join(failed)}: was it killed, or out of "
            "memory? The same command goes on from there."
        )
    reasons = "; ".join(f"{folder}: {error}" for folder, error in failed.items())
    return (
        f"{len(failed)} of {count} jobs failed, or need one that did (their logs say why); all "
        f"others are done and are not run again: {reasons}"
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs from writing into a folder.

    Raises:
        BANError: if another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BANError(
            f"output_dir={folder} is being written by another run: wait for it, or give another "
            "output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)


def _work(run: Run, job: Job, logs: Path) -> None:
    """Run a job in a worker; its output goes to its log."""
    log = logs / f"{job.folder}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", buffering=1, encoding="utf-8") as file,  # line by line, for `tail -f`
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        run(job)


def _pool(count: int) -> ProcessPoolExecutor:
    """Processes that each see one GPU, or have their share of the cores."""
    import torch

    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
    gpus: SimpleQueue[str] = context.SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    available = torch.cuda.device_count()
    for worker in range(count):
        known = visible if len(visible) == available else [str(i) for i in range(available)]
        gpus.put(known[worker % available] if available else "")
    threads = max(1, torch.get_num_threads() // count)
    return ProcessPoolExecutor(count, context, _begin, (gpus, threads))


def _begin(gpus: "SimpleQueue[str]", threads: int) -> None:
    """Prepare a fresh worker; it ends with the process that started it, however that ends."""
    import torch

    if gpu := gpus.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    else:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # without finishing its job, which a new run may begin again
