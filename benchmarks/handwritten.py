"""Distillation as a hand-written loop: what everything else is compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ban_hf.training.performance import computes_bfloat16
from benchmarks.timing import Clock
from benchmarks.trainers import LEARNING_RATE, MOMENTUM, WARM_UP, kl_divergence
from benchmarks.workloads import Workload, batches


class HandWritten:
    """A form: one epoch each time, of a student that goes on from where it was.

    The teacher is asked without a graph, and everything is in memory. At its best the loop also
    works in channels-last order, in bfloat16 where the hardware computes it, and takes label and
    teacher as one cross-entropy against the mixed target.
    """

    def __init__(
        self, workload: Workload, data: Dataset, device: torch.device, *, at_its_best: bool
    ) -> None:
        self.workload, self.data, self.device = workload, data, device
        self.at_its_best = at_its_best
        self.student = workload.network(1).to(device).train()
        self.teacher = workload.network(0).to(device).eval().requires_grad_(False)
        if at_its_best:
            for network in (self.student, self.teacher):
                network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM
        )

    def __call__(self) -> list[float]:
        clock, states = Clock(self.device), (None, None)
        for batch in batches(self.data, self.workload.batch, self.device):
            states = self._step(batch, *states)
            clock.tick()
        return clock.seconds()[WARM_UP - 1 :]

    def _step(self, batch: dict[str, Tensor], state: object, taught: object) -> tuple:
        """An optimizer step; the hidden states after it, of student and teacher."""
        bfloat16 = self.at_its_best and computes_bfloat16(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                teacher_logits, taught = self._ask(self.teacher, batch, taught)
            logits, state = self._ask(self.student, batch, state)
        labels = batch["shift_labels" if self.workload.is_text else "labels"]
        loss_of = self._mixed_loss if self.at_its_best else self._separate_loss
        loss = loss_of(logits.float(), teacher_logits.float(), labels.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return state, taught

    def _ask(self, network: torch.nn.Module, batch: dict[str, Tensor], state: object) -> tuple:
        """Logits `(N, C)` and, of a recurrent network, its state without a graph."""
        if not self.workload.is_text:
            pixels = batch["pixel_values"]
            if self.at_its_best:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            return network(pixel_values=pixels).logits, None
        given = {} if state is None else {"state": state}
        outputs = network(input_ids=batch["input_ids"], **given)
        state = getattr(outputs, "state", None)
        if state is not None:
            state = tuple(part.detach() for part in state)
        return outputs.logits.flatten(0, 1), state

    def _separate_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """The two terms, each by itself."""
        loss = kl_divergence(logits, teacher_logits)
        if self.workload.label_weight:
            loss = loss + self.workload.label_weight * F.cross_entropy(logits, labels)
        return loss

    def _mixed_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Both terms, up to the teacher's entropy, which has no gradient."""
        target = teacher_logits.softmax(1)
        if self.workload.label_weight:
            ones = torch.full_like(target[:, :1], self.workload.label_weight)
            target.scatter_add_(1, labels[:, None], ones)
        return F.cross_entropy(logits, target)
