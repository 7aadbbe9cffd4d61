"""Train every case on the processes there are; rank 0 writes what came of it.

torchrun --nproc_per_node 2 tests/train_on_ranks.py WORLD_SIZE FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny import Images, cifar, confident, history, lstm, reader, trained, vit, weights

CASES = {
    "kd": dict(objective="kd", temperature=2.0),
    "cwtm": dict(objective="cwtm"),
    "dkpp": dict(objective="dkpp"),
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


def evaluate_batch_norm(world_size: int, folder: Path) -> dict[str, float]:
    """The label loss that is logged, and that of the network that rank 0 would save."""
    data = Images(24, 32)
    options = dict(max_steps=2, per_device_train_batch_size=8 // world_size, learning_rate=0.02)
    trainer = trained(cifar(1), folder, cifar(2), data, Images(11, 32, seed=1), **options)
    logged = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        logits = trainer.model.eval()(pixel_values=trainer.eval_dataset.pixel_values).logits
    return {"logged": logged, "saved": F.cross_entropy(logits, trainer.eval_dataset.labels).item()}


def main(world_size: int, folder: Path) -> None:
    results = {name: train(world_size, folder, **case) for name, case in CASES.items()}
    results |= {f"LSTM, {name}": read(world_size, folder, name == "taught") for name in READERS}
    results["BatchNorm"] = evaluate_batch_norm(world_size, folder)
    found = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    assert found == world_size, f"{found} processes, not {world_size}"
    if found == 1 or torch.distributed.get_rank() == 0:
        torch.save(results, folder / f"world-{world_size}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
