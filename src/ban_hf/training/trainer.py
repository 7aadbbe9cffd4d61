"""One generation: a `transformers.Trainer` whose student learns from a frozen teacher."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ban_hf.data import SetEpoch
from ban_hf.data.description import POSITIONS
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.tasks.heads import load_classifier, load_renamed_weights
from ban_hf.tasks.items import counted, item_labels, item_logits, without_labels
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.callbacks import FiniteLossGuard
from ban_hf.training.comparison import (
    AGREEMENT,
    LABEL_LOSS,
    TEACHER_KL,
    compare,
)
from ban_hf.training.diagnosis import LossParts, StepStatistics
from ban_hf.training.ensemble import is_language_model
from ban_hf.training.performance import (
    allow_fast_products,
    describe,
    describe_compilation,
    fast_arguments,
    lay_out,
    tell_once,
)
from ban_hf.training.recurrence import CarriedState, check_accumulation, check_windows
from ban_hf.training.step_loss import StepLoss, Taught, label_losses, step_statistics
from ban_hf.training.teacher import Teaching
from ban_hf.training.teacher_checks import check_teacher

logger = logging.getLogger(__name__)

TAUGHT = "taught"  # what get_batch_samples adds to a batch


class BANTrainer(Trainer):
    """Trains a student from a frozen teacher; without a teacher it is `transformers.Trainer`.

    The loss of an optimizer step is

        teacher_weight * sum(d_i l_i) / sum(d_i)  +  label_weight * mean(label cross-entropy)

    over all items of all micro-batches of all processes of that step, where l_i is the objective
    and d_i what the item counts for (`objectives.item_weights`): the same under gradient
    accumulation and on several processes as in one large batch. An item is an image or a sentence;
    of a causal language model it is a word, whose label is the next one. Items with the label -100
    do not count.

    On `TokenWindows`, a text in reading order, recurrent students and teachers go on from their
    state after the window before, in training (truncated back-propagation through time) and in
    evaluation. On other data each sequence starts from nothing.

    Logs, beside those of `Trainer`, means over the steps since the last line: `teacher_loss` (the
    objective) and `label_loss`, the parts of `loss` without their weights; `teacher_agreement` (%
    of items with the same argmax); the paper's diagnosis: `ground_truth_term` and
    `dark_knowledge_term` of the gradient (eq. 7), `teacher_confidence` and
    `effective_sample_size` (see `diagnosis`). Evaluations give the label loss as `eval_loss`, of a
    language model the mean over words, with its exponential, `eval_perplexity`; with a teacher also
    `eval_teacher_agreement` (%) and `eval_teacher_kl` (nats).

    Args:
        model: the student; its output has `.logits` of shape `(N, C)`, or `(B, T, V)`.
        args: a `BANTrainingArguments`.
        teacher: a model whose output has `.logits`, a local folder, a Hub id (`ns/name@revision`),
            or None. A model is frozen and put into evaluation mode, in place; it stays outside the
            student, its optimizer and its checkpoints.
        trainer_kwargs: everything else, as for `Trainer`.

    Raises:
        ValueError: for a teacher that cannot teach this student (see `teacher.check_teacher`), for
            `TokenWindows` of another batch size, and for gradient accumulation on them.
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
        args.check_one_objective()
        if teacher is not None:
            if trainer_kwargs.get("compute_loss_func") is not None:
                raise BANError("compute_loss_func and teacher exclude each other: see objective.")
            # Where this is set, Trainer takes a loss as already scaled for gradient accumulation.
            trainer_kwargs["compute_loss_func"] = self._label_losses
        if args.fast is None:
            args = copy.copy(args)
            args.fast = teacher is not None
        if args.fast and model is not None:
            args = fast_arguments(args, lay_out(model))
        super().__init__(model, args, *trainer_args, **trainer_kwargs)
        if args.fast:
            allow_fast_products(args)
        self.finite_loss_guard = FiniteLossGuard(self.accelerator.gather)
        self.add_callback(self.finite_loss_guard)
        self.add_callback(SetEpoch())  # the views of ImageViews, where they are what is trained on
        self.carried = CarriedState()
        self.add_callback(self.carried)
        self.carried.add("student", self.model)
        self.teacher: nn.Module | None = None
        if teacher is not None:
            module = teacher if isinstance(teacher, nn.Module) else load_classifier(teacher)
            check_teacher(module, self.model, self.processing_class)
            self.teaching = Teaching(module, self.carried, self.accelerator, self.args)
            self.teacher = self.teaching.model
            self.add_callback(self.teaching)
        self.loss_parts = LossParts()
        self._evaluating = False
        self._evaluated: list[Tensor] = []  # sums of rows, (B, 4) each

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.loss_parts = LossParts()  # nothing of a training that was broken off
        self._check_language()
        if self.args.fast:
            tell_once(describe(self.model, self.args))
        try:
            self._open_cache()
            output = super().train(*args, **kwargs)
            if self.args.torch_compile:
                logger.info(describe_compilation())
            return output
        finally:
            if self.teacher is not None:
                self.teaching.close_cache()

    def _open_cache(self) -> None:
        if self.teacher is not None and self.args.teacher_cache is not None:
            epochs, *_ = self.set_initial_training_values(self.args, self.get_train_dataloader())
            self.teaching.open_cache(self.train_dataset, self.data_collator, epochs)

    def fill_teacher_cache(self) -> None:
        """Ask the teacher all that a training of these arguments will ask it, ahead of it.

        The outputs are in `args.teacher_cache` then; what is there already is not asked again.

        Raises:
            ValueError: without a teacher or a `teacher_cache`, and as `train` does.
        """
        if self.teacher is None or self.args.teacher_cache is None:
            raise BANError("fill_teacher_cache needs a teacher and args.teacher_cache.")
        self._check_language()
        try:
            self._open_cache()
            self.teaching.fill_cache(self.get_train_dataloader(), self._prepare_inputs)
        finally:
            self.teaching.close_cache()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not load_renamed_weights(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.carried.load(resume_from_checkpoint, self.args.process_index, self.args.device)

    def _save_rng_state(self, output_dir: str) -> None:
        """With the hidden states, which as much belong to the middle of an epoch."""
        super()._save_rng_state(output_dir)
        self.carried.save(output_dir, self.args.process_index)

    def _load_best_model(self) -> None:
        if not load_renamed_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    # Texts, read in order

    def _check_language(self) -> None:
        """Find before the first step what would come out wrong, or late, with language models."""
        args, reads = self.args, isinstance(self.train_dataset, TokenWindows)
        self.carried.reads_in_order = reads
        check_windows("train_dataset", self.train_dataset, args.train_batch_size, args)
        check_windows("eval_dataset", self.eval_dataset, args.eval_batch_size, args)
        if reads and "student" in self.carried.recurrent:
            check_accumulation(args)
        # Trainer smooths the labels of a class that it does not know without shifting them.
        known = type(self.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        unshifted = is_language_model(self.model) and (reads or not known)
        if args.label_smoothing_factor and self.teacher is None and unshifted:
            raise BANError(
                "label_smoothing_factor without a teacher would train this language model on "
                "labels that are not shifted: leave it out."
            )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, TokenWindows):
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for name in ("shift_labels", POSITIONS):  # language models take the first as a keyword
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _run_student(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The student's outputs, from the state that the last window left it in."""
        outputs = model(**without_labels(inputs), **self.carried.give("student"))
        self.carried.keep("student", outputs)
        return outputs

    # The loss of an optimizer step

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Ask the teacher, here where all micro-batches of the optimizer step are in hand."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.teacher is not None and batches:
            self._teach(batches)
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Nothing under a teacher: `step_statistics` counts what `Trainer` would count here."""
        if self.teacher is not None:
            return None
        return super()._get_num_items_in_batch(batch_samples, device)

    def _teach(self, batches: list) -> None:
        """Add the teacher's outputs to every micro-batch, and sum up the step over processes."""
        size, rank = self._train_batch_size, self.accelerator.process_index
        positions = [batch.pop(POSITIONS, None) for batch in batches]
        inputs = [self._prepare_inputs(batch) for batch in batches]
        answers = self.teaching.answers([without_labels(x) for x in inputs], positions)
        taught = []
        for i, outputs in enumerate(answers):  # (N, C) or (B, T, V)
            first_row = (i * self.accelerator.num_processes + rank) * size
            first_item = first_row * outputs.shape[:-1].numel() // len(outputs)
            labels = item_labels(inputs[i], outputs)  # (N,)
            taught.append(Taught(item_logits(outputs), labels, first_item))
            batches[i][TAUGHT] = taught[i]
        step = step_statistics(self.args.objective, taught, self.args.temperature)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(torch.stack(step), reduction="sum")  # (2,)
            step = StepStatistics(*total.unbind())
        step = StepStatistics(*(number.clamp(min=1e-9) for number in step))
        self.step_loss = StepLoss(self.args, step, self.state.global_step)
        self.loss_parts.add_step(step)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """This micro-batch's share of the loss of the step; in evaluation the label loss."""
        taught = inputs.pop(TAUGHT, None)
        if taught is not None:
            outputs = self._run_student(model, inputs)
            # DDP averages gradients over the processes; the shares are to be summed.
            share = self.step_loss.share(item_logits(outputs.logits), taught, self.loss_parts)
            loss = share * self.accelerator.num_processes
        elif self.teacher is not None or (self._evaluating and is_language_model(self.model)):
            outputs = self._run_student(model, inputs)
            loss = self._measure(outputs.logits, inputs)
        else:
            inputs = inputs | self.carried.give("student")
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self.carried.keep("student", outputs)
        return (loss, outputs) if return_outputs else loss

    def _label_losses(self, logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
        """The label cross-entropy of each item, zero where it does not count: `(N,)`."""
        return label_losses(logits, labels, self.args.label_smoothing_factor)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite_loss_guard.note(loss, self.state.global_step + 1)
        return loss

    # Evaluation and logs

    def _measure(self, logits: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The label loss of an evaluation's batch; what else is measured is kept."""
        labels, student = item_labels(inputs, logits), item_logits(logits)  # (N,), (N, C)
        teacher = None
        if self.teacher is not None:
            teacher = item_logits(self.teaching.ask(without_labels(inputs)))  # (N, C)
        items = compare(student, teacher, labels)  # (N, COLUMNS)
        if self.args.label_smoothing_factor and logits.ndim == 2 and labels is not None:
            items[:, LABEL_LOSS] = self._label_losses(student, labels)  # as Trainer measures it
        columns = items[:, [LABEL_LOSS, AGREEMENT, TEACHER_KL]].float()  # (N, 3)
        measured = torch.cat([columns, counted(labels, student)[:, None]], 1)  # (N, 4)
        # Row by row: those that fill up the last batch for all processes are dropped.
        rows = measured.view(len(logits), -1, 4).sum(1)  # (B, 4)
        self._evaluated.append(self.accelerator.gather_for_metrics(rows))
        return rows[:, 0].sum() / rows[:, 3].sum().clamp(min=1)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        *args: Any,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> EvalLoopOutput:
        """As in `Trainer`, with one set of BatchNorm statistics, and compared with the teacher."""
        check_windows("The dataset", dataloader.dataset, self.args.eval_batch_size, self.args)
        self._broadcast_buffers()
        self._evaluating, self._evaluated = True, []
        try:
            with self.carried.another_text(isinstance(dataloader.dataset, TokenWindows)):
                output = super().evaluation_loop(
                    dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
                )
        finally:
            self._evaluating = False
        if self._evaluated:
            measured = {f"{metric_key_prefix}_{k}": v for k, v in self._means().items()}
            output.metrics.update(measured)
        return output

    def _means(self) -> dict[str, float]:
        """The means over all items of an evaluation."""
        *sums, items = torch.cat(self._evaluated).double().sum(0).tolist()
        loss, agreement, divergence = (total / max(1, items) for total in sums)
        means = {"loss": loss}
        if is_language_model(self.model):
            means["perplexity"] = torch.tensor(loss).exp().item()  # inf, of a loss beyond 709
        if self.teacher is not None:
            means |= {"teacher_agreement": 100 * agreement, "teacher_kl": divergence}
        return means

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

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: BANTrainingArguments, model: PreTrainedModel | None = None
    ) -> tuple[Any, Any]:
        """As in `Trainer`; on a GPU SGD is one kernel for all weights, as Adam is by default."""
        cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if cls is torch.optim.SGD and args.fast and args.device.type == "cuda":
            options.setdefault("fused", True)
        return cls, options

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters with weight decay, by `decay_norms_and_biases`."""
        decay_all = self.args.decay_norms_and_biases
        if decay_all is None:
            return super().get_decay_parameter_names(model)
        # Norms and biases are the parameters of a single axis.
        return [name for name, p in model.named_parameters() if decay_all or p.ndim > 1]
