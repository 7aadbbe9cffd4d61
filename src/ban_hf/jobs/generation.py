"""One training to its end: its seed, and where it goes on from after a kill."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from ban_hf.lineage.environment import hardware
from ban_hf.lineage.files import read_json
from ban_hf.training.callbacks import check_trained
from ban_hf.training.trainer import BANTrainer


def generation_seed(seed: int, generation: int) -> int:
    """The seed of a generation of a family, in [0, 2^31): fresh, and a function of both."""
    return int(np.random.SeedSequence([seed, generation]).generate_state(1)[0] >> 1)


def train_to_end(trainer: BANTrainer) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one; what the record says of it."""
    args = trainer.args
    # Without the optimizer's state a checkpoint is no place to go on from.
    checkpoint = None if args.save_only_model else last_checkpoint(Path(args.output_dir))
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    check_trained(trainer.state.global_step)
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "world_size": args.world_size,
        "hardware": hardware(),
        "seconds": round(time.monotonic() - started, 1),
        "resumed_from": checkpoint.name if checkpoint else None,
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that is whole: its `trainer_state.json` is what `Trainer` writes last."""
    for step in sorted((int(f.name[11:]) for f in folder.glob("checkpoint-[0-9]*")), reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        with contextlib.suppress(OSError, ValueError):
            read_json(checkpoint / "trainer_state.json")
            return checkpoint
    return None
