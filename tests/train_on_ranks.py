"""Train every case on the processes there are; rank 0 writes what came of it.

torchrun --nproc_per_node 2 tests/train_on_ranks.py WORLD_SIZE FOLDER
"""

import contextlib
import sys
from pathlib import Path

import adapted
import heads
import torch
import torch.nn.functional as F
from accelerate import PartialState
from cached_students import KillAt, student
from family import Killed
from tiny import (
    Images,
    arguments,
    cifar,
    confident,
    history,
    lstm,
    reader,
    trained,
    vit,
    weights,
    windows,
)

from ban_hf import train_generations
from ban_hf.jobs.job import Setup
from ban_hf.jobs.training import measure
from ban_hf.tasks.auto import load_model

CASES = {
    "kd": dict(objective="kd", temperature=2.0),
    "cwtm, accumulated": dict(objective="cwtm", gradient_accumulation_steps=2, label_weight=0.5),
    "dkpp, accumulated": dict(objective="dkpp", gradient_accumulation_steps=2, label_weight=0.5),
}
READERS = ("taught", "labels")


def train(world_size: int, folder: Path, **case) -> dict:
    """Five steps of 8 items (with accumulation of 16, each epoch's second of 8) and evaluations."""
    trainer = trained(
        vit(1),
        folder,
        confident(vit(2)),
        Images(24),
        Images(11, seed=1),
        max_steps=5,
        per_device_train_batch_size=8 // world_size,
        per_device_eval_batch_size=4 // world_size,
        eval_strategy="steps",
        eval_steps=2,
        **case,
    )
    return {"weights": weights(trainer.model), "history": history(trainer)}


def read(world_size: int, folder: Path, teacher: bool) -> dict:
    """Two epochs of a text, each process with its own columns of it."""
    trainer = reader(
        lstm(1),
        folder,
        lstm(2) if teacher else None,
        per_device_train_batch_size=4 // world_size,
        per_device_eval_batch_size=4 // world_size,
        eval_strategy="epoch",
    )
    trainer.train()
    return {"weights": weights(trainer.model), "history": history(trainer)}


def cached(world_size: int, folder: Path, make) -> dict:
    """Students of an asked teacher, of one whose cache they fill (killed and resumed), and replay.

    Args:
        world_size: number of processes.
        folder: to train in.
        make: gives a trainer of a folder, a batch size and arguments.
    """
    options = dict(save_strategy="steps", save_steps=2)
    cache = dict(teacher_cache=str(folder / f"cache-{make.__name__}-{world_size}"))

    def trainer(name, callbacks=None, **changes):
        place = folder / f"{make.__name__}-{world_size}-{name}"
        return make(place, world_size, callbacks=callbacks, **options | changes)

    found = {"online": trainer("online")}
    found["online"].train()
    with contextlib.suppress(Killed):
        trainer("filled", callbacks=[KillAt(4)], **cache).train()
    found["filled"] = trainer("filled", **cache)
    found["filled"].train(f"{found['filled'].args.output_dir}/checkpoint-4")
    for name in ("completed", "replayed"):
        found[name] = trainer(name, **cache)
        if name == "replayed":
            found[name].frozen_teacher.plain.forward = None  # it is not asked
        found[name].train()
    return {name: weights(trainer.model) for name, trainer in found.items()}


def images(folder: Path, world_size: int, **changes):
    return student(folder, per_device_train_batch_size=8 // world_size, **changes)


def text(folder: Path, world_size: int, **changes):
    size = 4 // world_size
    changes |= dict(per_device_train_batch_size=size, per_device_eval_batch_size=size)
    return reader(lstm(1), folder, lstm(2), windows(120), **changes)


CACHED = (images, text)


HEADS = [case for case in heads.FIRST if "Segformer" not in case[1]]  # it has BatchNorm


def head(world_size: int, folder: Path, case) -> dict:
    """Two steps of 8 rows, an evaluation of 7, and a measurement of them."""
    data, rest = heads.rows_of(heads.batch_of(case)), heads.rows_of(heads.batch_of(case, 7, 1))
    trainer = heads.trainer(
        case,
        folder,
        data,
        per_device_train_batch_size=8 // world_size,
        per_device_eval_batch_size=4 // world_size,
        max_steps=2,
        learning_rate=0.1,
    )
    trainer.train()
    setup = Setup(None, data, None, rest, {})
    measured = measure([trainer.model], setup, trainer, trainer.teacher, 0)
    found = {"weights": weights(trainer.model), "test": measured["test"]}
    return found | {"evaluation": trainer.evaluate(rest)}


def evaluate_batch_norm(world_size: int, folder: Path) -> dict[str, float]:
    """The label loss that is logged, and that of the network that rank 0 would save."""
    data = Images(24, 32)
    options = dict(max_steps=2, per_device_train_batch_size=8 // world_size, learning_rate=0.02)
    trainer = trained(cifar(1), folder, cifar(2), data, Images(11, 32, seed=1), **options)
    logged = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        logits = trainer.model.eval()(pixel_values=trainer.eval_dataset.pixel_values).logits
    return {"logged": logged, "saved": F.cross_entropy(logits, trainer.eval_dataset.labels).item()}


def adapt(world_size: int, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of generation 1 of a sequence of adapters."""
    base, run = folder / "gpt2", folder / f"adapters-{world_size}"
    with PartialState().main_process_first():
        if not base.exists():
            adapted.save_base("gpt2", base)
    train_generations(
        lambda generation: adapted.adapter(base, generation),
        arguments(run, per_device_train_batch_size=8 // world_size, max_steps=3),
        generations=1,
        train_dataset=adapted.texts(),
        test_dataset=adapted.texts(7, 1),
    )
    return weights(load_model(run / "generation-1"))


def main(world_size: int, folder: Path) -> None:
    results = {name: train(world_size, folder, **case) for name, case in CASES.items()}
    results |= {f"LSTM, {name}": read(world_size, folder, name == "taught") for name in READERS}
    results |= {f"cached {m.__name__}": cached(world_size, folder, m) for m in CACHED}
    results |= {f"head {case[1:]}": head(world_size, folder, case) for case in HEADS}
    results["BatchNorm"] = evaluate_batch_norm(world_size, folder)
    results["adapters"] = adapt(world_size, folder)
    found = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    assert found == world_size, f"{found} processes, not {world_size}"
    if found == 1 or torch.distributed.get_rank() == 0:
        torch.save(results, folder / f"world-{world_size}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
