"""A graph of jobs run: in this process, or in others that each have a GPU or a share of the cores.

Nothing is kept in memory that is needed later: jobs are known by their folders. A run may be killed
at any moment and started again with the same command, or with another that shares some of the jobs.
"""

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ban_hf.errors import BANError
from ban_hf.jobs.job import Job, in_order

Run = Callable[[Job], None]  # does a job, whose needed jobs are finished


class JobsFailed(BANError):
    """Some jobs failed; all that do not need them are done."""


class InProcess(Executor):
    """Does each job at once, in this process."""

    def submit(self, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(run(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run_jobs(
    jobs: Iterable[Job], run: Run, is_done: Callable[[Job], bool], *, logs: Path, workers: int = 1
) -> None:
    """Run the jobs that are not done, each after those that it needs.

    Args:
        jobs: of the graph; what they need comes with them.
        run: does one. For several workers it must be picklable: a function of a module, or a
            `functools.partial` of one.
        is_done: whether a job was finished earlier.
        logs: folder of `FOLDER.txt`: what each job prints, and why it failed.
        workers: processes; jobs take the GPUs in turn. One is this process.

    Raises:
        JobsFailed: naming the jobs that failed, when all that do not need them are done.
    """
    jobs = in_order(jobs)
    done = {job.folder for job in jobs if is_done(job)}
    waiting = [job for job in jobs if job.folder not in done]
    count, failed = len(waiting), dict[str, BaseException]()
    running: dict[Future[None], Job] = {}
    with (
        tqdm(total=len(jobs), initial=len(done), unit="job") as bar,
        _executor(workers) as executor,
    ):
        while waiting or running:
            for job in list(waiting):
                needed = {each.folder for each in job.needs}
                if needed & failed.keys():
                    waiting.remove(job)
                    failed[job.folder] = BANError("a job that it needs failed")
                    bar.update()
                elif needed <= done and len(running) < workers:
                    waiting.remove(job)
                    bar.set_postfix_str(", ".join(j.folder for j in (*running.values(), job)))
                    running[_submit(executor, run, job, logs)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if (error := future.exception()) is None:
                    done.add(job.folder)
                else:
                    failed[job.folder] = error
                bar.update()
    if failed:
        raise JobsFailed(_failure(failed, count))


def _submit(executor: Executor, run: Run, job: Job, logs: Path) -> "Future[None]":
    try:
        return executor.submit(_work, run, job, logs)
    except BrokenProcessPool as error:  # another job's process died
        future: Future[None] = Future()
        future.set_exception(error)
        return future


def _failure(failed: dict[str, BaseException], count: int) -> str:
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


def _work(run: Run, job: Job, logs: Path) -> None:
    """Run a job; its output goes to its log."""
    log = logs / f"{job.folder}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", buffering=1, encoding="utf-8") as file,  # line by line, for `tail -f`
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            run(job)
        except Exception:
            traceback.print_exc()
            raise


@contextlib.contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    """This process, or several that each see one GPU, or have their share of the cores."""
    if workers == 1:
        yield InProcess()
        return
    import torch

    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
    gpus: SimpleQueue[str] = context.SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    available = torch.cuda.device_count()
    for worker in range(workers):
        known = visible if len(visible) == available else [str(i) for i in range(available)]
        gpus.put(known[worker % available] if available else "")
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, context, _begin, (gpus, threads)) as pool:
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # a pool cannot stop one job: all end, and go on when run again
            raise


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
