"""One generation: a `transformers.Trainer` whose student learns from a frozen teacher."""

import contextlib
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ban_hf.data.augmentation import SetEpoch
from ban_hf.data.description import POSITIONS
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.models.adapters import (
    base_of,
    check_kind,
    is_adapted,
    share_frozen,
    without_adapter,
)
from ban_hf.tasks.auto import load_model, resolve_task
from ban_hf.tasks.base import Task, check_label_loss, check_label_range, label_cross_entropy
from ban_hf.training.arguments import BANTrainingArguments, describe, fast_arguments
from ban_hf.training.loss import FiniteLossGuard, ItemStatistics, StepLoss, item_statistics
from ban_hf.training.performance import (
    allow_fast_products,
    describe_compilation,
    load_renamed_weights,
    log_once,
    to_channels_last,
)
from ban_hf.training.recurrence import CarriedState, check_windows
from ban_hf.training.teacher import CachedTeacher, FrozenTeacher, check_shares_nothing

logger = logging.getLogger(__name__)

MICRO_BATCH = "micro_batch"  # what get_batch_samples adds to a batch: its place in the step


class BANTrainer(Trainer):
    """Trains a student from a frozen teacher; without a teacher it is `transformers.Trainer`.

    The loss of an optimizer step is

        teacher_weight * sum(d_i l_i) / sum(d_i)  +  label_weight * mean(label cross-entropy)

    over all items of all micro-batches of all processes of that step, where l_i is the objective
    and d_i what the item counts for (`objectives.item_weights`): the same under gradient
    accumulation and on several processes as in one large batch. The model's task says what an item
    is: an image, a sentence, or a word of a text, whose label is the next one. Items with the label
    -100 do not count. What a model adds to its own loss (`Task.extra_loss`) is added, averaged over
    the micro-batches.

    Before the first step, and before an evaluation, one batch with labels must have the loss that
    the model itself reports for it (`tasks.base.check_label_loss`).

    On `TokenWindows`, a text in reading order, recurrent students and teachers continue from their
    state after the last window, in training (truncated back-propagation through time) and in
    evaluation. On other data each sequence starts without a state.

    Logs, beside those of `Trainer`, means over the steps since the last line: `teacher_loss` (the
    objective) and `label_loss`, the parts of `loss` without their weights; `teacher_agreement` (%
    of items with the same argmax); the paper's diagnosis: `ground_truth_term` and
    `dark_knowledge_term` of the gradient (eq. 7), `teacher_confidence` and
    `effective_sample_size` (see `StepLoss`). Evaluations give the label loss as
    `eval_loss`, of a language model the mean over words, with its exponential, `eval_perplexity`;
    with a teacher also `eval_teacher_agreement` (%) and `eval_teacher_kl` (nats).

    Args:
        model: the student; it may be a `PeftModel`.
        args: a `BANTrainingArguments`.
        teacher: a model whose output has `.logits`, a local folder, a Hub id (`ns/name@revision`),
            or None. A model is frozen and put into evaluation mode, in place; it stays outside the
            student, its optimizer and its checkpoints. Of a student with an adapter (PEFT) it may
            be the base, `model.get_base_model()`, which then teaches with the adapter off.
        task: what the student predicts: a name in `TASKS`, or a `Task`, for a class of your own; by
            default it is found by the student's class.
        trainer_kwargs: everything else, as for `Trainer`.

    Raises:
        BANError: for a model that no task knows, a task that does not fit it, or labels that it
            reads in another way; for a teacher that cannot teach it (see `Task.check_pair`);
            for `TokenWindows` of another batch size, and for gradient accumulation on them.
        FloatingPointError: from `train`, where the loss becomes NaN or infinite.
    """

    lr_scheduler: LRScheduler | None
    train_dataset: Any

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: BANTrainingArguments | None = None,
        *trainer_args: Any,
        teacher: nn.Module | str | Path | None = None,
        task: str | Task | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = BANTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, BANTrainingArguments):
            raise TypeError(f"args must be a BANTrainingArguments, not a {type(args).__name__}.")
        if teacher is not None:
            if trainer_kwargs.get("compute_loss_func") is not None:
                raise BANError("compute_loss_func and teacher exclude each other: see objective.")
            # Where this is set, Trainer takes a loss as already scaled for gradient accumulation.
            trainer_kwargs["compute_loss_func"] = _never_called
        args = fast_arguments(args, model, default=teacher is not None)
        if args.fast and model is not None:
            to_channels_last(model)
        super().__init__(model, args, *trainer_args, **trainer_kwargs)
        if args.fast:
            allow_fast_products(args)
        self.task = resolve_task(task, self.model)
        self.finite_loss_guard = FiniteLossGuard(self.accelerator.gather)
        self.add_callback(self.finite_loss_guard)
        self.add_callback(SetEpoch())  # the views of ImageViews, if they are the training set
        self.carried = CarriedState()
        self.add_callback(self.carried)
        self.carried.add("student", self.student)
        self.step_loss = StepLoss(self.args, self.accelerator)
        self.teacher: nn.Module | None = None
        self.frozen_teacher: FrozenTeacher | None = None
        if teacher is not None:
            module = self._read_teacher(teacher)
            name = None if isinstance(teacher, nn.Module) else teacher
            check_shares_nothing(module, self.model)
            self.task.check_pair(module, self.student, self.processing_class, name)
            kind = FrozenTeacher if self.args.teacher_cache is None else CachedTeacher
            self.frozen_teacher = kind(module, self.task, self.carried, self.accelerator, self.args)
            self.teacher = self.frozen_teacher.model
            self.add_callback(self.frozen_teacher)
        self._classes: int | None = None  # known when the labels were checked
        self._evaluating = False
        self._evaluated: list[Tensor] = []  # sums of rows, (B, 4) each

    @property
    def student(self) -> Any:
        """The student as its task sees it: of an adapter its base, with the adapter's layers."""
        return base_of(self.model)

    def _read_teacher(self, teacher: nn.Module | str | Path) -> nn.Module:
        """The teacher as it is run; one that is loaded here shares an adapted student's base."""
        if is_adapted(self.model):
            check_kind(self.model)
        if isinstance(teacher, nn.Module):
            if is_adapted(self.model) and teacher is self.student:
                if not self.has_whole_weights:
                    raise BANError(
                        "teacher is the base of model, whose weights FSDP or DeepSpeed cuts into "
                        "parts: give the teacher by the folder or Hub id of the base."
                    )
                return without_adapter(self.model)
            if is_adapted(teacher):
                check_kind(teacher)
            return base_of(teacher)
        module = load_model(teacher)
        self.share_base(module)
        return module

    @property
    def has_whole_weights(self) -> bool:
        """Whether each process has all of the student's weights."""
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def share_base(self, module: nn.Module) -> None:
        """Let a model hold the weights of an adapted student's base in place of equal ones."""
        casts = self.args.fp16_full_eval or self.args.bf16_full_eval  # the student, in place
        if self.has_whole_weights and not casts:
            share_frozen(module, self.model)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.step_loss.forget()  # of a training that was broken off
        self._check_reading()
        if self.args.fast:
            log_once(describe(self.model, self.args))
        with self._open_cache():
            output = super().train(*args, **kwargs)
        if self.args.torch_compile:
            logger.info(describe_compilation())
        return output

    @contextlib.contextmanager
    def _open_cache(self) -> Iterator[None]:
        """Open the teacher cache, if there is one, for a training on a copy of the dataset."""
        if not isinstance(self.frozen_teacher, CachedTeacher):
            yield
            return
        given = self.train_dataset
        try:
            epochs, *_ = self.set_initial_training_values(self.args, self.get_train_dataloader())
            self.train_dataset = self.frozen_teacher.open(given, self.data_collator, epochs)
            yield
        finally:
            self.train_dataset = given
            self.frozen_teacher.close()

    def fill_teacher_cache(self) -> None:
        """Store, ahead of a training, all outputs of the teacher that it will need.

        They are in `args.teacher_cache` then. What is stored there already is not computed again.

        Raises:
            BANError: without a teacher or a `teacher_cache`, and as `train` does.
        """
        if not isinstance(self.frozen_teacher, CachedTeacher):
            raise BANError("fill_teacher_cache needs a teacher and args.teacher_cache.")
        self._check_reading()
        with self._open_cache():
            self.frozen_teacher.fill(self.get_train_dataloader(), self._prepare_inputs)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not load_renamed_weights(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.carried.load(resume_from_checkpoint, self.args)

    def _save_rng_state(self, output_dir: str) -> None:
        """With the hidden states, which as much belong to the middle of an epoch."""
        super()._save_rng_state(output_dir)
        self.carried.save(output_dir, self.args)

    def _load_best_model(self) -> None:
        if not load_renamed_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    # Texts, read in order

    def _check_reading(self) -> None:
        """Raise, before the first step, for what would come out wrong, or late."""
        args, in_order = self.args, isinstance(self.train_dataset, TokenWindows)
        self.carried.reads_in_order = in_order
        check_windows("train_dataset", self.train_dataset, args.train_batch_size, args)
        check_windows("eval_dataset", self.eval_dataset, args.eval_batch_size, args)
        if self.carried.carries("student") and args.gradient_accumulation_steps > 1:
            raise BANError(
                f"gradient_accumulation_steps={args.gradient_accumulation_steps} with a recurrent "
                "model would not mean a larger batch: the micro-batches are windows that follow "
                "one another, so each update would see a longer text with states of old weights. "
                "Set it to 1; for a larger batch raise per_device_train_batch_size (more columns)."
            )
        if self.frozen_teacher is not None and args.remove_unused_columns:
            self._check_columns(self.frozen_teacher.plain)
        # Trainer smooths the labels of a class that it does not know without shifting them.
        known = type(self.student).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        unshifted = "shift_labels" in self.task.label_names and (in_order or not known)
        if args.label_smoothing_factor and self.teacher is None and unshifted:
            raise BANError(
                "label_smoothing_factor without a teacher would train this language model on "
                "labels that are not shifted: leave it out."
            )

    def _check_columns(self, teacher: nn.Module) -> None:
        """Raise where `Trainer` removes a column because the student alone does not read it."""
        if not isinstance(self.train_dataset, datasets.Dataset | datasets.IterableDataset):
            return
        self._set_signature_columns_if_needed()
        read = set(inspect.signature(teacher.forward).parameters) - set(self._signature_columns)
        if lost := sorted(read & set(self.train_dataset.column_names or ())):
            raise BANError(
                f"remove_unused_columns=True takes {', '.join(lost)} away, because "
                f"{type(self.model).__name__} does not read it; the teacher, a "
                f"{type(teacher).__name__}, does. Remove it from the data if the teacher can do "
                "without; otherwise these two need other inputs, and cannot be teacher and student."
            )

    def _check_labels(self, inputs: dict[str, Any]) -> None:
        """Check how the model reads its labels, on the first batch that has some."""
        if self._classes is None and self.compute_loss_func in (None, _never_called):
            with self.compute_loss_context_manager():
                state = self.carried.give("student")
                self._classes = check_label_loss(self.task, self.student, inputs, state)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, TokenWindows):
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # Language models take shift_labels as a keyword, which their signature does not show.
        for name in (*self.task.label_names, POSITIONS):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _run_student(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The student's outputs, from the state after the last window."""
        forward_inputs = self.task.forward_inputs(self.student, inputs)
        outputs = model(**forward_inputs, **self.carried.give("student"))
        self.carried.keep("student", outputs)
        return outputs

    # The loss of an optimizer step

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Run the teacher, here where all micro-batches of the optimizer step are at hand."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, num_items
        positions = [batch.pop(POSITIONS, None) for batch in batches]
        if self._classes is None:
            self._check_labels(self._prepare_inputs(batches[0]))
        if self._classes is not None:
            for labels in (batch.get(n) for batch in batches for n in self.task.label_names):
                # To read them from a GPU would make the step wait.
                if isinstance(labels, Tensor) and labels.device.type == "cpu":
                    check_label_range(labels, self._classes)
        if self.frozen_teacher is not None:
            self._begin_step(self.frozen_teacher, batches, positions)
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """None under a teacher: `StepLoss` counts what `Trainer` would count here."""
        if self.teacher is not None:
            return None
        return super()._get_num_items_in_batch(batch_samples, device)

    def _begin_step(self, teacher: FrozenTeacher, batches: list, positions: list) -> None:
        """Run the teacher on every micro-batch, and number them."""
        inputs = [self._prepare_inputs(batch) for batch in batches]
        forward_inputs = [self.task.forward_inputs(teacher.plain, x) for x in inputs]
        outputs = teacher.outputs(forward_inputs, positions)
        pairs = zip(inputs, outputs, strict=True)
        items = [self.task.items(teacher.plain, x, found) for x, found in pairs]
        self.step_loss.begin(items, self.state.global_step, self._train_batch_size)
        for i, batch in enumerate(batches):
            batch[MICRO_BATCH] = i

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """This micro-batch's share of the loss of the step; in evaluation the label loss."""
        micro_batch = inputs.pop(MICRO_BATCH, None)
        if self._evaluating:
            self._check_labels(inputs)
        if micro_batch is not None:
            outputs = self._run_student(model, inputs)
            student = self.task.logits(self.student, inputs, outputs)  # (N, C)
            # DDP averages gradients over the processes; the shares are to be summed.
            loss = self.step_loss.share(student, micro_batch) * self.accelerator.num_processes
            extra = self.task.extra_loss(self.student, outputs)
            if extra is not None:
                loss = loss + extra / len(self.step_loss.batches)
        elif self.teacher is not None or (self._evaluating and not self.task.one_item_a_row):
            outputs = self._run_student(model, inputs)
            loss = self._measure(outputs, inputs)
        else:
            inputs = inputs | self.carried.give("student")
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self.carried.keep("student", outputs)
        return (loss, outputs) if return_outputs else loss

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

    def _measure(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """The label loss of an evaluation's batch; what else is measured is kept."""
        items = self.task.items(self.student, inputs, outputs)
        # Smoothed where Trainer, without a teacher, does so.
        smoothing = self.args.label_smoothing_factor if self.task.one_item_a_row else 0.0
        label_loss = agreement = divergence = torch.zeros_like(items.weights)  # (N,) each
        if self.frozen_teacher is not None:
            plain = self.frozen_teacher.plain
            outputs = self.frozen_teacher.forward(self.task.forward_inputs(plain, inputs))
            columns = item_statistics(items.logits, self.task.items(plain, inputs, outputs))
            found = ItemStatistics.of(columns)  # (N,) each
            label_loss, agreement = found.label_loss, found.teacher_agreement
            divergence = found.teacher_loss
        if items.labels is not None and (smoothing or self.frozen_teacher is None):
            label_loss = label_cross_entropy(items.logits, items.labels, items.weights, smoothing)
        kept = [label_loss, agreement, divergence, items.weights]
        measured = torch.stack([column.float() for column in kept], 1)  # (N, 4)
        # Row by row: those that fill up the last batch for all processes are dropped.
        rows = measured.view(items.rows, -1, 4).sum(1)  # (B, 4)
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
        means = {"loss": loss} | self.task.loss_metrics(loss)
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
            logs.update(self.step_loss.means())
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


def _never_called(*args: Any, **kwargs: Any) -> Tensor:
    """Tells `Trainer` that a loss is already scaled; `compute_loss` does not reach it."""
    raise AssertionError("compute_loss_func under a teacher")


def check_trained(steps: int) -> None:
    """Raise unless a training has made a step, naming what may be the cause."""
    if not steps:
        raise BANError(
            "Not one step was trained: look at num_train_epochs, max_steps, "
            "per_device_train_batch_size and dataloader_drop_last."
        )
