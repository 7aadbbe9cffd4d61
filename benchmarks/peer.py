"""The same distillation by torchdistill, from a configuration, as its documentation shows it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, TensorDataset

from ban_hf import ImageViews
from benchmarks.timing import Clock
from benchmarks.trainers import LEARNING_RATE, MOMENTUM, WARM_UP
from benchmarks.workloads import Workload


class Logits(nn.Module):
    """A classifier that gives its logits alone, as torchdistill takes them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(N, 3, H, W)` to `(N, C)`."""
        return self.network(pixel_values=pixel_values).logits


def configuration(batch: int) -> dict[str, Any]:
    """One epoch of knowledge distillation without labels, with our optimizer."""
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": batch},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LEARNING_RATE, "momentum": MOMENTUM}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": KD_LOSS, "weight": 1.0}}},
        },
    }


KD_LOSS = {
    "key": "KDLoss",
    "kwargs": {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": 1.0,
        "alpha": 0.0,
        "reduction": "batchmean",
    },
}


class TorchDistill:
    """A form; the images are in memory as they go into the network, without augmentation.

    Raises:
        ImportError: where torchdistill is not installed.
    """

    def __init__(self, workload: Workload, data: ImageViews, device: torch.device) -> None:
        from torchdistill.core.distillation import get_distillation_box

        batch = data.select(range(len(data)), augment=False).__getitems__(range(len(data)))
        teacher, student = Logits(workload.network(0)), Logits(workload.network(1))
        self.device = device
        self.box = get_distillation_box(
            teacher.to(device).eval(),
            student.to(device),
            {"train": TensorDataset(batch["pixel_values"], batch["labels"])},
            configuration(workload.batch),
            device,
            None,
            False,
            1.0,
        )

    def __call__(self) -> list[float]:
        clock, box = Clock(self.device), self.box
        box.pre_epoch_process(epoch=0)
        for images, labels, supplement in box.train_data_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            loss = box.forward_process(images, labels, supplement)
            box.post_forward_process(loss=loss)
            clock.tick()
        return clock.seconds()[WARM_UP - 1 :]
