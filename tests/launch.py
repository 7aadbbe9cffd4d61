"""A recipe as a user starts it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from table_results import family_rows

from ban_hf.families import Families
from ban_hf.jobs.setup import describe_dataset, prepare

ROOT = Path(__file__).parents[1]


def run_recipe(name: str, *words: object) -> None:
    """Run `recipes/NAME.py` with a command line, in this process."""
    script = str(ROOT / "recipes" / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, words)])
        runpy.run_path(script, run_name="__main__")


def trained_family(
    splits, args, model_name: str, *, generations: int = 1, model_args=None, window: int = 35
) -> dict:
    """The results of a family of one objective, that of its arguments, trained as by a recipe."""
    args, setup = prepare(splits, args, model_name, model_args, window)
    objectives = {args.objective: (args.objective, args.label_weight)}
    dataset = describe_dataset(splits, window)
    Families(setup, args, objectives, generations, title="tiny", dataset=dataset).run()
    return family_rows(Path(args.output_dir) / "results.json")


def launched(recipe: str, *options: str) -> str:
    """What `accelerate launch recipes/RECIPE ...` prints, from the repository's root."""
    accelerate = Path(sys.executable).with_name("accelerate")
    return _output([accelerate, "launch", f"recipes/{recipe}", *options])


def on_two_processes(script: str, *options: str) -> str:
    """What a script prints that torchrun starts twice on the CPU, from the repository's root."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return _output([*torchrun, script, *options], CUDA_VISIBLE_DEVICES="")


def _output(command: list, **environment: str) -> str:
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
