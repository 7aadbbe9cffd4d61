"""Networks and data of the sizes that the benchmarks are about; nothing is downloaded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, default_data_collator
from transformers.modeling_outputs import ImageClassifierOutput

from ban_hf import ImageViews, TokenWindows, collate, create_classifier, create_language_model

CLASSES, WORDS = 100, 10_000
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Workload:
    """A network, and how it is trained.

    Args:
        build: gives it afresh.
        batch: images, or columns of text.
        size: of an image, or words of a window.
        is_text: whether it is a language model, which learns from labels and teacher (BAN+L).
        on_gpu_only: too long for a CPU.
    """

    build: Callable[[], PreTrainedModel]
    batch: int
    size: int
    is_text: bool = False
    on_gpu_only: bool = False

    @property
    def label_weight(self) -> float:
        """BAN for images, BAN+L for texts, as in the paper."""
        return 1.0 if self.is_text else 0.0

    @property
    def collator(self) -> Callable[[Any], dict[str, Tensor]]:
        """What makes items into a batch."""
        return default_data_collator if self.is_text else collate

    def network(self, seed: int) -> PreTrainedModel:
        """A network of its own."""
        torch.manual_seed(seed)
        return self.build()

    def data(self, steps: int, device: torch.device) -> ImageViews | TokenWindows:
        """An epoch of so many steps; images in the device's memory."""
        if self.is_text:
            return text(self.batch * (steps * self.size + 1), self.batch, self.size)
        return images(self.batch * steps, self.size, CLASSES, augment=True).to(device)


class Tiny(nn.Module):
    """A perceptron with one hidden layer."""

    SIZE = 8  # of its images

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3 * self.SIZE**2, 16), nn.Linear(16, CLASSES)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """`(N, 3, H, W)` to logits `(N, C)` and, with labels, the loss."""
        logits = self.head(self.hidden(pixel_values.flatten(1)).relu())
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def gpt2() -> PreTrainedModel:
    """A small GPT-2."""
    shape = {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, **shape))


WORKLOADS = {
    "Wide-ResNet-16-2": Workload(
        lambda: create_classifier("cifar_wrn_16_2", num_labels=CLASSES), 128, 32
    ),
    "DenseNet-22-12": Workload(
        lambda: create_classifier("cifar_densenet_22_12", num_labels=CLASSES), 128, 32
    ),
    "ResNet-50": Workload(
        lambda: create_classifier("resnet50", num_labels=CLASSES, image_size=224),
        64,
        224,
        on_gpu_only=True,
    ),
    "LSTM-650": Workload(
        lambda: create_language_model("lstm_650", vocab_size=WORDS), 32, 35, is_text=True
    ),
    "GPT-2 (4 x 256)": Workload(gpt2, 16, 64, is_text=True),
}


def images(count: int, size: int, classes: int, *, augment: bool = False) -> ImageViews:
    """Images of noise."""
    generator = torch.Generator().manual_seed(0)
    return ImageViews(
        torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
        torch.randint(0, classes, (count,), generator=generator),
        [str(label) for label in range(classes)],
        mean=MEAN,
        std=STD,
        augment=augment,
    )


def text(count: int, columns: int, window: int, words: int = WORDS) -> TokenWindows:
    """A text of words at random."""
    generator = torch.Generator().manual_seed(0)
    return TokenWindows(
        torch.randint(0, words, (count,), generator=generator), columns, window=window
    )


def batches(dataset: Dataset, batch: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """An epoch as a hand-written loop reads it: images at random, text in order."""
    if isinstance(dataset, ImageViews):
        for indices in torch.randperm(len(dataset)).split(batch):
            yield dataset.__getitems__(indices)
    else:
        for items in DataLoader(dataset, batch, collate_fn=default_data_collator):
            yield {name: value.to(device) for name, value in items.items()}
