"""One generation: a `transformers.Trainer` whose student learns from a frozen teacher."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ban_hf.data.augmentation import SetEpoch, has_views
from ban_hf.data.description import POSITIONS, kept_random_states
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.models.adapters import base_of
from ban_hf.tasks.auto import check_teacher, load_model, resolve_task, task_of
from ban_hf.tasks.base import Task
from ban_hf.tasks.losses import (
    check_label_loss,
    check_label_range,
    check_meaning,
    check_smoothing,
    label_terms,
)
from ban_hf.tasks.pairing import Pairing, call_options, foreign_inputs, named_inputs, pair, without
from ban_hf.training.arguments import BANTrainingArguments, describe, fast_arguments
from ban_hf.training.loss import (
    FiniteLossGuard,
    ItemStatistics,
    StepLoss,
    item_statistics,
    undefined_statistics,
)
from ban_hf.training.performance import (
    allow_fast_products,
    can_share_weights,
    describe_compilation,
    load_renamed_weights,
    log_once,
    to_channels_last,
)
from ban_hf.training.recurrence import CarriedState, check_windows
from ban_hf.training.search import SearchingTrainer
from ban_hf.training.teacher import (
    CachedTeacher,
    FrozenTeacher,
    beside_student,
    check_shares_nothing,
)

logger = logging.getLogger(__name__)

MICRO_BATCH = "micro_batch"  # what get_batch_samples adds to a batch: its place in the step
SKIP_LOGITS = "skip_logits"  # what Trainer adds, with Liger's kernels, where the loss is enough


class BANTrainer(SearchingTrainer):
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
    the model itself reports for it (`tasks.losses.check_label_loss`), if its task is known. Without
    a teacher it need not be.

    A training adds callbacks of ours only while it runs, and only those that it needs: for the
    teacher and its cache, `ImageViews`, `TokenWindows`, and against NaN (`stops_at_nan`).

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
        BANError: for a task that does not fit the model, or labels that it reads in another way;
            for `TokenWindows` of another batch size, and for gradient accumulation on them; with a
            teacher for a model that no task knows, or that it cannot teach (`pairing.pair`).
        FloatingPointError: from `train` with a teacher, where the loss becomes NaN or infinite.
    """

    can_return_loss: bool
    label_names: list[str]
    lr_scheduler: LRScheduler | None
    train_dataset: Any
    compute_loss_func: Any

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
        args = fast_arguments(args, model, default=teacher is not None)
        super().__init__(model, args, *trainer_args, **trainer_kwargs)
        if args.fast:
            allow_fast_products(args)
        #: Whether a loss that is no number stops a training. A sequence sets it for generation 0.
        self.stops_at_nan = teacher is not None
        self.finite_loss_guard = FiniteLossGuard(self.accelerator.gather)
        self.carried = CarriedState()
        self.step_loss = StepLoss(self.args, self.accelerator)
        self.teacher: nn.Module | None = None
        self.frozen_teacher: FrozenTeacher | None = None
        self._evaluating = False
        self._evaluated: list[Tensor] = []  # sums of rows and groups, (B, G, 5) each
        self._undefined: list[str] = []  # statistics that have no meaning for this task's items
        self._given_task = task
        self._set_up_student(needs_task=teacher is not None)
        if teacher is not None:
            self._set_up_teacher(teacher)

    @property
    def task(self) -> Task:
        """What the student predicts.

        Raises:
            BANError: if no task knows it, which is so without a teacher alone.
        """
        return task_of(self.student) if self._task is None else self._task

    def _set_up_student(self, *, needs_task: bool) -> None:
        """Find the task of the student, which `model_init` builds anew for each training."""
        if self.args.fast:
            to_channels_last(self.model)
        try:
            self._task: Task | None = resolve_task(self._given_task, self.model)
        except BANError:
            if needs_task or self._given_task is not None:
                raise
            self._task = None  # Trainer trains any model
        if needs_task or self._given_task is not None:
            self._check_label_names(self.task)
        self._other_columns: frozenset[str] = frozenset()  # of batches, for other models alone
        self.carried.add("student", self.student)
        self._classes: int | None = None  # known when the labels were checked

    def _check_label_names(self, task: Task) -> None:
        """Raise where an evaluation would be without labels, and its loss 0."""
        if set(self.label_names) & set(task.label_names):
            return
        if self.args.label_names is not None:
            raise BANError(
                f"label_names={self.args.label_names}: task {task.name!r} reads its labels from "
                f"{' and '.join(task.label_names)}, so that none of these would count. Rename the "
                "column, or give a Task with these label_names."
            )
        self.label_names = list(task.label_names)  # of a class whose forward does not name them

    def _set_up_teacher(self, teacher: nn.Module | str | Path) -> None:
        if self.compute_loss_func is not None:
            raise BANError("compute_loss_func and teacher exclude each other: see objective.")
        # Where this is set, Trainer takes a loss as already scaled for gradient accumulation.
        self.compute_loss_func = _never_called
        if self.args.use_liger_kernel and self.args.teacher_cache is not None:
            raise BANError(
                "use_liger_kernel changes functions that all models of an architecture share, and "
                "so what is stored of a teacher: leave it out, or leave teacher_cache out."
            )
        self._teacher_name = None if isinstance(teacher, nn.Module) else teacher
        module = teacher if isinstance(teacher, nn.Module) else load_model(teacher)
        can_share, is_ours = can_share_weights(self.args, self.accelerator), module is not teacher
        module = beside_student(module, self.model, is_ours=is_ours, can_share=can_share)
        pairing = self._pair(module)
        kind = FrozenTeacher if self.args.teacher_cache is None else CachedTeacher
        self.frozen_teacher = kind(pairing, self.carried, self.accelerator, self.args)
        self.teacher = self.frozen_teacher.model

    def _pair(self, teacher: nn.Module) -> Pairing:
        """How the teacher teaches the student; raises where it cannot."""
        check_shares_nothing(teacher, self.model)
        check_teacher(self.task, teacher)
        check_meaning(self.task, self.student, self.args.objective)
        self.keep_columns([teacher])
        return pair(self.task, teacher, self.student, self.processing_class, self._teacher_name)

    def keep_columns(self, others: Iterable[nn.Module]) -> None:
        """Let batches have, with `remove_unused_columns` too, what only other models take."""
        self._other_columns |= foreign_inputs(self.student, others) - set(self.task.label_names)

    @property
    def student(self) -> Any:
        """The student as its task sees it: of an adapter its base, with the adapter's layers."""
        return base_of(self.model)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.carried.reads_in_order = isinstance(self.train_dataset, TokenWindows)
        output = super().train(*args, **kwargs)
        if self.args.torch_compile:
            logger.info(describe_compilation())
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Here `train` has built the student, by `model_init`, and set the arguments of a trial.

        Under `auto_find_batch_size` it begins again where the memory is short.
        """
        self.step_loss.forget()  # of a training that was broken off
        if self.model_init is not None:
            self._set_up_student(needs_task=self.teacher is not None)
            if self.frozen_teacher is not None:
                self.frozen_teacher.pairing = self._pair(self.frozen_teacher.plain)
        self._check_reading()
        if self.args.fast:
            log_once(describe(self.model, self.args))
        with self._open_cache(), self._own_callbacks():
            return super()._inner_training_loop(*args, **kwargs)

    @contextlib.contextmanager
    def _own_callbacks(self) -> Iterator[None]:
        """Add, for a training, those of our callbacks that it needs: without a teacher often none.

        In this order: an epoch's states begin before its teacher.
        """
        callbacks: list[TrainerCallback] = []
        if self.stops_at_nan:
            callbacks.append(self.finite_loss_guard)
        if has_views(self.train_dataset):
            callbacks.append(SetEpoch(self.train_dataset))
        if self.carried.reads_in_order:
            callbacks.append(self.carried)
        if self.frozen_teacher is not None:
            callbacks.append(self.frozen_teacher)
        for callback in callbacks:
            self.add_callback(callback)
        try:
            yield
        finally:
            for callback in callbacks:
                self.remove_callback(callback)

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
        self.carried.reads_in_order = isinstance(self.train_dataset, TokenWindows)
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
        args, in_order = self.args, self.carried.reads_in_order
        check_windows("train_dataset", self.train_dataset, args.train_batch_size, args)
        check_windows("eval_dataset", self.eval_dataset, args.eval_batch_size, args)
        self.carried.check_accumulation(args)
        if args.label_smoothing_factor and self.teacher is None and self._task is not None:
            check_smoothing(self._task, self.student, in_order)

    def _check_labels(self, inputs: dict[str, Any]) -> None:
        """Check how the model reads its labels, on the first batch that has some."""
        if self._task is None or self._classes is not None:
            return
        if self.compute_loss_func in (None, _never_called):
            batch = without(inputs, self._other_columns | {SKIP_LOGITS})
            with self.compute_loss_context_manager(), kept_random_states():
                besides = self._besides()
                self._classes = check_label_loss(self._task, self.student, batch, besides)
            words = self.frozen_teacher and self.frozen_teacher.pairing.words
            if words and self._classes:  # what the teacher has none of is no word of the tokenizer
                self._classes = min(words, self._classes)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, TokenWindows):
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # Language models take shift_labels as a keyword, which their signature does not show.
        names = () if self._task is None else self._task.label_names
        names = (*names, *sorted(self._other_columns | (named_inputs(self.student) or set())))
        if isinstance(self.frozen_teacher, CachedTeacher):
            names = (*names, POSITIONS)
        for name in names:
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _besides(self) -> dict[str, Any]:
        """What the student is called with besides a batch."""
        return self.carried.give("student") | call_options(self.student)

    def _run_student(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The student's outputs, from the state after the last window."""
        inputs.pop(SKIP_LOGITS, None)
        forward_inputs = self.task.forward_inputs(self.student, inputs)
        outputs = model(**without(forward_inputs, self._other_columns), **self._besides())
        self.carried.keep("student", outputs)
        return outputs

    # The loss of an optimizer step

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Run the teacher, here where all micro-batches of the optimizer step are at hand."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or self._task is None:
            return batches, num_items
        if self.teacher is not None and len(batches) < num_batches:
            # A stream ended within the step. Trainer makes no step of it, but keeps its gradient.
            return [], None
        is_cached = isinstance(self.frozen_teacher, CachedTeacher)
        positions = [batch.pop(POSITIONS) if is_cached else None for batch in batches]
        if self._classes is None:
            self._check_labels(self._prepare_inputs(batches[0]))
        if self._classes is not None:
            for batch in batches:
                for labels in self.task.class_numbers(self.student, batch):
                    # To read them from a GPU would make the step wait.
                    if labels.device.type == "cpu":
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
        items = teacher.items(inputs, positions)
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
        if self._evaluating:
            self._check_labels(inputs)
        if self._is_plain():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        micro_batch = inputs.pop(MICRO_BATCH, None)
        if micro_batch is not None:
            outputs = self._run_student(model, inputs)
            student = self.task.logits(self.student, inputs, outputs)  # (N, C)
            # DDP averages gradients over the processes; the shares are to be summed.
            loss = self.step_loss.share(student, micro_batch) * self.accelerator.num_processes
            extra = self.task.extra_loss(self.student, outputs)
            if extra is not None:
                loss = loss + extra / len(self.step_loss.batches)
        elif self.teacher is not None or self._measures_items():
            outputs = self._run_student(model, inputs)
            loss = self._measure(outputs, inputs)
        else:
            inputs = inputs | self._besides()
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self.carried.keep("student", outputs)
        return (loss, outputs) if return_outputs else loss

    def _measures_items(self) -> bool:
        """Whether the loss of an evaluation is the mean over items, not that of `Trainer`."""
        known = self._task is not None and self.compute_loss_func in (None, _never_called)
        return self._evaluating and known

    def _is_plain(self) -> bool:
        """Whether a batch is to be read as `Trainer` reads it."""
        carries = self.carried.carries("student")
        return not (self.teacher is not None or self._measures_items() or carries)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.stops_at_nan:
            self.finite_loss_guard.note(loss, self.state.global_step + 1)
        return loss

    # Evaluation and logs

    def _measure(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """The label loss of an evaluation's batch; what else is measured is kept."""
        items = self.task.items(self.student, inputs, outputs)
        label_loss = label_weight = items.weights.new_zeros(items.rows, items.groups)
        if items.has_labels:
            # Smoothed as `Trainer` does, but for a perplexity, which would be none of the words.
            is_perplexity = self.task.headline.name == "perplexity"
            smoothing = 0.0 if is_perplexity else self.args.label_smoothing_factor
            terms = label_terms(items.logits, items, smoothing)  # (M,), (M,)
            by_row = [x.view(items.rows, -1, items.groups).sum(1) for x in terms]  # (B, G) each
            label_loss, label_weight = by_row
        columns = torch.stack([items.weights] * 3, 1)  # (N, 3)
        if self.frozen_teacher is not None:
            theirs = self.frozen_teacher.evaluate(inputs)
            ours = theirs.beside(items.logits)  # (N, C)
            found = ItemStatistics.of(item_statistics(ours, theirs))  # (N,) each
            columns = torch.stack([items.weights, found.teacher_agreement, found.teacher_loss], 1)
            self._undefined = undefined_statistics(theirs)
        # Row by row: those that fill up the last batch for all processes are dropped.
        rows = columns.view(items.rows, -1, items.groups, 3).sum(1)  # (B, G, 3)
        rows = torch.cat([torch.stack([label_loss, label_weight], -1), rows], -1)  # (B, G, 5)
        self._evaluated.append(self.accelerator.gather_for_metrics(rows.float()))
        sums = rows.sum(0)  # (G, 5)
        return (sums[:, 0] / sums[:, 1].clamp(min=1)).mean()

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As in `Trainer`; without labels, too, what teacher and student predict is compared."""
        is_labelled = any(name in inputs for name in self.label_names)
        if self.teacher is None or is_labelled or self.task.needs_labels:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        label_names, can_return_loss = self.label_names, self.can_return_loss
        self.label_names, self.can_return_loss = [], True  # so that `compute_loss` is called
        try:
            found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.label_names, self.can_return_loss = label_names, can_return_loss
        return None, *found[1:]

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        *args: Any,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> EvalLoopOutput:
        """As in `Trainer`, with one set of BatchNorm statistics, and compared with the teacher."""
        dataset = dataloader.dataset if isinstance(dataloader, DataLoader) else None
        check_windows("The dataset", dataset, self.args.eval_batch_size, self.args)
        self._broadcast_buffers()
        self._evaluating, self._evaluated = True, []
        try:
            with self.carried.another_text(isinstance(dataset, TokenWindows)):
                output = super().evaluation_loop(
                    dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
                )
        finally:
            self._evaluating = False
        if self._evaluated:
            measured = {f"{metric_key_prefix}_{k}": v for k, v in self._means().items()}
            output.metrics.update(measured)
            self.measured |= measured.keys() - {f"{metric_key_prefix}_loss"}
        return output

    def _means(self) -> dict[str, float]:
        """The means over all items of an evaluation; of several groups their mean."""
        sums = torch.cat(self._evaluated).double().sum(0)  # (G, 5)
        losses, labels, items, agreements, divergences = sums.unbind(1)  # (G,) each
        means: dict[str, float] = {}
        if bool(labels.any()):
            loss = (losses / labels)[labels > 0].mean().item()
            means = {"loss": loss} | self.task.loss_metrics(loss)
        if self.teacher is not None:
            counted = items > 0  # (G,)
            means["teacher_kl"] = (divergences / items)[counted].mean().item()
            if "teacher_agreement" not in self._undefined:
                means["teacher_agreement"] = 100 * (agreements / items)[counted].mean().item()
        return means

    def _broadcast_buffers(self) -> None:
        """Rank 0's BatchNorm statistics, which are those that get saved, for every process."""
        if self.accelerator.num_processes > 1 and self._task is not None:
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
