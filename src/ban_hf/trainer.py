"""One generation: a `transformers.Trainer` whose student learns from a frozen teacher."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ban_hf.callbacks import FiniteLossGuard
from ban_hf.data import SetEpoch
from ban_hf.diagnosis import LossParts, StepStatistics
from ban_hf.heads import load_classifier, load_renamed_weights
from ban_hf.objectives import OBJECTIVES, item_weights, kd
from ban_hf.teacher import check_teacher, freeze, teacher_logits
from ban_hf.training_args import BANTrainingArguments

TEACHER = "teacher"  # what get_batch_samples adds to a batch: (teacher's logits, first item)


class BANTrainer(Trainer):
    """Trains a student from a frozen teacher; without a teacher it is `transformers.Trainer`.

    The loss of an optimizer step is

        teacher_weight * sum(d_i l_i) / sum(d_i)  +  label_weight * mean(label cross-entropy)

    over all items of all micro-batches of all processes of that step, where l_i is the objective
    and d_i what the item counts for (`objectives.item_weights`): the same under gradient
    accumulation and on several processes as in one large batch.

    Logs, beside those of `Trainer`, means over the steps since the last line: `teacher_loss` (the
    objective) and `label_loss`, the parts of `loss` without their weights; `teacher_agreement` (%
    of items with the same argmax); the paper's diagnosis: `ground_truth_term` and
    `dark_knowledge_term` of the gradient (eq. 7), `teacher_confidence` and
    `effective_sample_size` (see `diagnosis`). Evaluations give the label loss as `eval_loss`, and
    `eval_teacher_agreement` (%) and `eval_teacher_kl` (nats).

    Args:
        model: the student; its output has `.logits` of shape `(N, C)`.
        args: a `BANTrainingArguments`.
        teacher: a model whose output has `.logits`, a local folder, a Hub id (`ns/name@revision`),
            or None. A model is frozen and put into evaluation mode, in place; it stays outside the
            student, its optimizer and its checkpoints.
        trainer_kwargs: everything else, as for `Trainer`.

    Raises:
        ValueError: for a teacher that cannot teach this student (see `teacher.check_teacher`).
        FloatingPointError: from `train`, where the loss becomes NaN or infinite.
    """

    lr_scheduler: LRScheduler | None

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: BANTrainingArguments | None = None,
        *trainer_args: Any,
        teacher: nn.Module | str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = BANTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, BANTrainingArguments):
            raise TypeError(f"args must be a BANTrainingArguments, not a {type(args).__name__}.")
        if teacher is not None:
            if trainer_kwargs.get("compute_loss_func") is not None:
                raise ValueError("compute_loss_func and teacher exclude each other: see objective.")
            # Where this is set, Trainer takes a loss as already scaled for gradient accumulation.
            trainer_kwargs["compute_loss_func"] = self._label_losses
        super().__init__(model, args, *trainer_args, **trainer_kwargs)
        self.finite_loss_guard = FiniteLossGuard(self.accelerator.gather)
        self.add_callback(self.finite_loss_guard)
        self.add_callback(SetEpoch())  # the views of ImageViews, where they are what is trained on
        self.teacher = None if teacher is None else self._prepare_teacher(teacher)
        self.loss_parts = LossParts()
        self._evaluated: list[Tensor] = []

    def _prepare_teacher(self, teacher: nn.Module | str | Path) -> nn.Module:
        module = teacher if isinstance(teacher, nn.Module) else load_classifier(teacher)
        check_teacher(module, self.model)
        prepared: nn.Module = self.accelerator.prepare_model(freeze(module), evaluation_mode=True)
        # Left in the accelerator's list, it would pass for the prepared student in an evaluation
        # before training, which then runs without autocast.
        self.accelerator._models.pop()
        return prepared

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.loss_parts = LossParts()  # nothing of a training that was broken off
        return super().train(*args, **kwargs)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not load_renamed_weights(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not load_renamed_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    # The loss of an optimizer step

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Ask the teacher, here where all micro-batches of the optimizer step are in hand."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.teacher is not None and batches:
            self._teach(self.teacher, batches)
        return batches, num_items

    def _teach(self, teacher: nn.Module, batches: list) -> None:
        """Add the teacher's outputs to every micro-batch, and sum up the step over processes."""
        size, rank = self.args.train_batch_size, self.accelerator.process_index
        statistics = []
        for i, batch in enumerate(batches):
            logits = teacher_logits(teacher, self._prepare_inputs(batch))  # (N, C)
            batch[TEACHER] = (logits, (i * self.accelerator.num_processes + rank) * size)
            weights = item_weights(self.args.objective, logits, self.args.temperature)  # (N,)
            statistics.append(StepStatistics.sums(logits, weights))
        total = self.accelerator.reduce(torch.stack(statistics).sum(0), reduction="sum")
        self._step = StepStatistics(*total.unbind())
        self.loss_parts.add_step(self._step)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """This micro-batch's share of the loss of the step; in evaluation the label loss."""
        if self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if TEACHER not in inputs:
            losses, outputs = super().compute_loss(model, inputs, return_outputs=True)  # (N,)
            self._compare(losses, outputs.logits, teacher_logits(self.teacher, inputs))
            return (losses.mean(), outputs) if return_outputs else losses.mean()
        teacher, first_item = inputs.pop(TEACHER)
        labels = inputs.pop("labels", None)
        outputs = model(**inputs)
        loss = self._share(outputs, teacher, labels, first_item)
        # DDP averages gradients over the processes; the shares are to be summed.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _share(
        self, outputs: Any, teacher: Tensor, labels: Tensor | None, first_item: int
    ) -> Tensor:
        """What these items `(N, C)` add to the loss of the optimizer step."""
        args, student = self.args, outputs.logits
        if labels is not None and (labels.ndim != 1 or labels.is_floating_point()):
            raise ValueError(
                f"labels must be class numbers of shape (N,), not {tuple(labels.shape)} of "
                f"{labels.dtype}."
            )
        labels = None if labels is None else labels.long()
        terms = OBJECTIVES[args.objective](
            student,
            teacher,
            labels,
            temperature=args.temperature,
            generator=self._generator(first_item, teacher.shape[1]),
        )  # (N,)
        mass = item_weights(args.objective, teacher, args.temperature).sum()
        teacher_loss = terms.mean() * mass / self._step.mass
        loss, label_term = args.teacher_weight * teacher_loss, None
        if labels is not None:
            label_term = self._label_losses(outputs, labels).sum() / self._step.items
        if args.label_weight:
            if label_term is None:
                raise ValueError(
                    f"label_weight={args.label_weight} needs labels, but train_dataset has none: "
                    "add a 'labels' column, or set label_weight=0 (BAN)."
                )
            loss = loss + args.label_weight * label_term
        self.loss_parts.add(teacher_loss, label_term, student, teacher, labels, self._step.items)
        return loss

    def _label_losses(self, outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        """The label cross-entropy of each item, `(N,)`."""
        logits, smoothing = outputs.logits.float(), self.args.label_smoothing_factor
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    def _generator(self, first_item: int, num_classes: int) -> torch.Generator | None:
        """Noise for `dkpp` that depends on the seed, the step, and an item's place in the step.

        An item's place does not depend on how a step is cut into micro-batches and processes. The
        rows of the items before this micro-batch are drawn and dropped.
        """
        if self.args.objective != "dkpp":
            return None
        # On the CPU, whose stream does not depend on how it is cut; it heeds 32 bits of a seed.
        generator = torch.Generator()
        seed = np.random.SeedSequence([self.args.seed, self.state.global_step])
        generator.manual_seed(int(seed.generate_state(1)[0]))
        torch.rand(first_item, num_classes - 1, generator=generator)
        return generator

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite_loss_guard.note(loss.isfinite().all(), self.state.global_step + 1)
        return loss

    # Evaluation and logs

    def _compare(self, losses: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Keep what an evaluation is about, of label losses `(N,)` and logits `(N, C)`."""
        agree = 100 * (student.argmax(1) == teacher.argmax(1)).float()  # (N,)
        divergence = kd(student, teacher).float()  # (N,)
        # Item by item: those that fill up the last batch for all processes are dropped.
        evaluated = torch.stack([losses, agree, divergence], 1)  # (N, 3)
        self._evaluated.append(self.accelerator.gather_for_metrics(evaluated))

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """As in `Trainer`, with one set of BatchNorm statistics, and compared with the teacher."""
        self._broadcast_buffers()
        self._evaluated = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._evaluated:
            means = torch.cat(self._evaluated).mean(0).tolist()
            names = ("loss", "teacher_agreement", "teacher_kl")
            keys = [f"{metric_key_prefix}_{name}" for name in names]
            output.metrics.update(zip(keys, means, strict=True))
        return output

    def _broadcast_buffers(self) -> None:
        """Rank 0's BatchNorm statistics, which are those that get saved, for every process."""
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.teacher is not None:
            logs.update(self.loss_parts.means(self.accelerator))
        super().log(logs, start_time)

    # Optimizer and schedule

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The multi-step schedule where `lr_milestones` is given, which `Trainer` does not have."""
        if self.lr_scheduler is None and self.args.lr_milestones:
            steps = [round(m * num_training_steps) for m in self.args.lr_milestones]
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = MultiStepLR(optimizer, steps, gamma=self.args.lr_gamma)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters with weight decay, by `decay_norms_and_biases`."""
        decay_all = self.args.decay_norms_and_biases
        if decay_all is None:
            return super().get_decay_parameter_names(model)
        # Norms and biases are the parameters of a single axis.
        return [name for name, p in model.named_parameters() if decay_all or p.ndim > 1]
