"""A frozen teacher in a training: run once for each step, or replayed from its cache."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import trange
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    TrainerCallback,
    default_data_collator,
)

from ban_hf.data.augmentation import ImageViews, collate
from ban_hf.data.description import POSITIONS, describe_data
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.lineage.environment import weights_digest
from ban_hf.lineage.files import plain_json, sha256_of_json
from ban_hf.lineage.record import architecture
from ban_hf.tasks.base import Output, Task
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.performance import is_convolutional, prepare_frozen, to_channels_last
from ban_hf.training.recurrence import CarriedState
from ban_hf.training.teacher_cache import CacheContents, TeacherCache

Inputs = dict[str, Any]  # a batch without labels, on the device
CPU_BATCH = 32  # images whose activations stay in a CPU's cache: a fifth faster than 128


def freeze(teacher: nn.Module) -> nn.Module:
    """Put a teacher into evaluation mode and take its parameters out of every gradient."""
    return teacher.eval().requires_grad_(False)


def check_teacher(
    teacher: nn.Module,
    student: nn.Module,
    task: Task,
    processor: Any = None,
    name: str | Path | None = None,
) -> None:
    """Raise unless a teacher can teach a student.

    Args:
        teacher: a model.
        student: a model.
        task: of the student.
        processor: of the student, such as its tokenizer, if it has one.
        name: the folder or Hub id that the teacher was loaded from, if it was.

    Raises:
        BANError: if they are the same object or share weights that are trained; and see
            `Task.check_pair`.
    """
    trained = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    if teacher is student or any(id(parameter) in trained for parameter in teacher.parameters()):
        raise BANError(
            "teacher and model are the same object or share trainable weights, so that nothing "
            "would be learnt: give the student fresh weights, such as type(model)(config)."
        )
    task.check_pair(teacher, student, processor, name)


class FrozenTeacher(TrainerCallback):
    """A teacher, frozen and prepared, with its hidden states and its cache.

    Without a cache it runs on every batch, with one only on batches that are not stored yet. Of an
    image the cache stores the logits, of a text the hidden states before the output layer, which is
    applied again.

    Attributes:
        plain: the teacher as it was given.
        model: the teacher as it is run.
        task: of the student.
    """

    def __init__(
        self,
        teacher: nn.Module,
        task: Task,
        carried: CarriedState,
        accelerator: Accelerator,
        args: BANTrainingArguments,
    ) -> None:
        self.task, self.carried, self.accelerator, self.args = task, carried, accelerator, args
        self.plain = freeze(to_channels_last(teacher) if args.fast else teacher)
        carried.add("teacher", teacher)
        self.model = prepare_frozen(accelerator, teacher)
        fits_a_cache = args.fast and args.device.type == "cpu" and is_convolutional(teacher)
        self._batch_size = args.teacher_batch_size or (CPU_BATCH if fits_a_cache else None)
        self.cache: TeacherCache | None = None
        self._dataset: Any = None  # the copy that is trained on
        self._given_dataset: Any = None
        self._checked: set[torch.Size] = set()

    # Forward passes

    def forward(self, inputs: Inputs, **options: Any) -> Any:
        """The teacher's outputs for a batch, in evaluation mode and without a graph.

        Raises:
            BANError: if they have no logits.
        """
        if self.model.training:  # a callback or an evaluation switched it: BatchNorm would move
            self.model.eval()
        with torch.inference_mode():
            outputs = self.model(**inputs, **self.carried.give("teacher"), **options)
        for output in self.task.outputs:
            if getattr(outputs, output.name, None) is None:
                raise BANError(
                    f"teacher gives no {output.name}, but {type(outputs).__name__}: it must have a "
                    f"head, as {self.task.facts.auto_class} gives it."
                )
        self.carried.keep("teacher", outputs)
        return outputs

    def outputs(self, batches: Sequence[Inputs], positions: Sequence[Any]) -> list[Any]:
        """The outputs for each micro-batch of a step, or those that are stored.

        Args:
            batches: of the step.
            positions: `(B,)` of each batch's items in the training set; None without a cache.
        """
        if self.cache is None:
            return self._forward_together(batches)
        found = [self._replay(x, at) for x, at in zip(batches, positions, strict=True)]
        missing = [i for i, outputs in enumerate(found) if outputs is None]
        new = iter(
            self._forward_and_store([batches[i] for i in missing], [positions[i] for i in missing])
        )
        return [next(new) if outputs is None else outputs for outputs in found]

    def _forward_together(self, batches: Sequence[Inputs]) -> list[Any]:
        """The outputs for each batch, run in batches of the teacher's own size."""
        size = self._batch_size
        if size is None or not batches or self.carried.carries("teacher"):
            return [self.forward(inputs) for inputs in batches]
        if len({_shapes(inputs) for inputs in batches}) > 1:  # texts, padded to other lengths
            return [found for inputs in batches for found in self._forward_together([inputs])]
        lengths = [len(next(iter(inputs.values()))) for inputs in batches]
        parts = {
            name: torch.cat([inputs[name] for inputs in batches]).split(size) for name in batches[0]
        }
        found = [
            self.forward(dict(zip(parts, tensors, strict=True)))
            for tensors in zip(*parts.values(), strict=True)
        ]
        split = {
            name: torch.cat([getattr(outputs, name) for outputs in found]).split(lengths)
            for name, _ in self.task.outputs
        }
        return [
            SimpleNamespace(**dict(zip(split, tensors, strict=True)))
            for tensors in zip(*split.values(), strict=True)
        ]

    # The cache

    def open_cache(self, dataset: Any, collator: Any, epochs: int) -> Any:
        """Open `args.teacher_cache` for a training.

        Args:
            dataset: of the training; it stays as it is.
            collator: what makes batches of it.
            epochs: of the training.

        Returns:
            A copy of the dataset whose batches hold the positions of their items.

        Raises:
            BANError: if such a dataset or teacher cannot be cached; if the folder holds something
                else, or its disk has no room.
        """
        if type(dataset) not in (ImageViews, TokenWindows):  # a subclass may show something else
            raise BANError(
                f"teacher_cache={self.args.teacher_cache!r} needs to know what the teacher reads "
                "in each epoch: train_dataset must be ImageViews (load_images) or "
                f"TokenWindows, not {type(dataset).__name__}. Or leave teacher_cache out."
            )
        known = collate if isinstance(dataset, ImageViews) else default_data_collator
        if collator is not known and not isinstance(collator, DataCollatorWithPadding):
            raise BANError(
                f"teacher_cache cannot tell what data_collator={collator!r} makes of a batch: use "
                f"{known.__name__}, or leave teacher_cache out."
            )
        if self.task.outputs != (Output(),):
            raise BANError(
                f"teacher_cache stores one tensor of logits, and task {self.task.name!r} has "
                f"{len(self.task.outputs)}: leave teacher_cache out."
            )
        self._given_dataset, dataset = dataset, copy.copy(dataset)
        vars(dataset).pop("fingerprint", None)  # tensors may have been changed since it was read
        self._is_text, self._is_read = isinstance(dataset, TokenWindows), _reading(dataset)
        contents = self._contents(dataset)
        self._is_augmented = isinstance(dataset, ImageViews) and dataset.augment
        cache = TeacherCache(str(self.args.teacher_cache), contents, self.accelerator)
        self.cache_epochs = epochs if self._is_augmented else 1
        cache.open(range(self.cache_epochs))
        self.cache, self._checked, self._dataset = cache, set(), dataset
        dataset.gives_positions = True
        return dataset

    def close_cache(self) -> None:
        """Let another training fill it."""
        if self.cache is not None:
            self.cache.close()
            self.cache = self._dataset = self._given_dataset = None

    @property
    def needs_forward(self) -> bool:
        """Whether the teacher must run in this epoch."""
        return self.cache is None or not self.cache.is_whole

    def begin_epoch(self, epoch: int) -> None:
        """Read what is stored of an epoch."""
        if self.cache is not None:
            if _reading(self._given_dataset) != self._is_read:
                raise BANError("teacher_cache: train_dataset was changed during the training.")
            self.cache.begin(epoch if self._is_augmented else 0)

    def end_epoch(self) -> None:
        """Put what was stored in this epoch in place."""
        if self.cache is not None:
            self.cache.end()

    def fill_cache(self, loader: Any, prepare: Callable[[Inputs], Inputs]) -> None:
        """Store all that a training will need, in the order in which the teacher reads.

        Args:
            loader: of the training.
            prepare: puts a batch where the model is.
        """
        with torch.random.fork_rng(devices=[]):  # loading draws from what students draw from
            for epoch in trange(self.cache_epochs, disable=self.args.disable_tqdm, unit="epoch"):
                self.begin_epoch(epoch)
                if self.needs_forward:
                    self._fill_epoch(loader, epoch, prepare)
                self.end_epoch()

    def _fill_epoch(self, loader: Any, epoch: int, prepare: Callable[[Inputs], Inputs]) -> None:
        loader.set_epoch(epoch)  # handed on to the dataset, but not on several processes
        if isinstance(self._dataset, ImageViews):
            self._dataset.set_epoch(epoch)
        with self.carried.another_text(self.carried.reads_in_order):
            for batch in loader:
                positions = batch.pop(POSITIONS)
                inputs = self.task.forward_inputs(self.plain, prepare(batch))
                self.outputs([inputs], [positions])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin_epoch(math.floor(state.epoch or 0))
        half_way = not float(state.epoch or 0).is_integer()
        must_read = self.needs_forward and self.carried.carries("teacher")
        if half_way and must_read and not self.carried.holds("teacher"):
            raise BANError(
                "This checkpoint was saved while the teacher was replayed from a teacher_cache "
                "that is not there now: without the words that it read before, the teacher would "
                "give other logits. Give the same teacher_cache, or start from the beginning."
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end_epoch()

    def _contents(self, dataset: ImageViews | TokenWindows) -> CacheContents:
        """What the cache of this teacher on these data holds."""
        teacher = self.plain
        if isinstance(dataset, ImageViews):
            row: tuple[int, ...] = (len(dataset.label_names),)
        else:
            self._head = self._output_layer()
            row = (dataset.window, self._head.in_features)
        network: dict[str, Any] = {
            "class": f"{type(teacher).__module__}.{type(teacher).__qualname__}"
        }
        if isinstance(teacher, PreTrainedModel):
            network = architecture(teacher).to_dict()
        else:
            network["modules_sha256"] = sha256_of_json(repr(teacher))
        key = {
            "teacher": {"weights_sha256": weights_digest(teacher)} | network,
            "data": describe_data(dataset) | self._is_read,
            "precision": {
                "autocast": self.accelerator.mixed_precision,
                "weights": str(next(teacher.parameters()).dtype),
                "channels_last": bool(self.args.fast) and is_convolutional(teacher),
                "compiled": self.args.torch_compile,
                "device": self.accelerator.device.type,
                "float32_products": torch.get_float32_matmul_precision(),
            },
        }
        in_order = self.carried.carries("teacher")
        return CacheContents(
            plain_json(key), len(dataset), row, self.args.teacher_cache_dtype, in_order
        )

    def _output_layer(self) -> nn.Linear:
        """The layer that gives the teacher's logits, and whose input is stored.

        Raises:
            BANError: if there is none.
        """
        plain = self.plain
        head = plain.get_output_embeddings() if isinstance(plain, PreTrainedModel) else None
        if not isinstance(head, nn.Linear):
            raise BANError(
                f"teacher_cache: {type(plain).__name__} has no linear output layer, whose "
                "input could be stored: leave teacher_cache out."
            )
        return head

    def _replay(self, inputs: Inputs, positions: Tensor) -> Any:
        """The outputs of a batch that are stored; None if one is missing."""
        assert self.cache is not None
        rows = self.cache.replay(positions)
        if rows is None:
            return None
        if self._is_text:
            # Laid out as in the first run: products of a slice are rounded otherwise.
            rows = self._decode(rows[:, : inputs["input_ids"].shape[1]].contiguous())
        return SimpleNamespace(logits=rows)

    def _forward_and_store(
        self, batches: Sequence[Inputs], positions: Sequence[Tensor]
    ) -> list[Any]:
        """The outputs for each batch, as they will be replayed."""
        assert self.cache is not None
        stored = []
        if not self._is_text:
            found = self._forward_together(batches)
            for at, outputs in zip(positions, found, strict=True):
                stored.append(SimpleNamespace(logits=self.cache.keep(at, outputs.logits)))
            return stored
        for inputs, at in zip(batches, positions, strict=True):
            outputs = self.forward(inputs, output_hidden_states=True)
            hidden = outputs.hidden_states[-1]  # (B, T, H)
            self._check_decoding(hidden, outputs.logits)
            stored.append(SimpleNamespace(logits=self._decode(self.cache.keep(at, hidden))))
        return stored

    @torch.inference_mode()
    def _decode(self, hidden: Tensor) -> Tensor:
        """The output layer, as the teacher applies it: `(B, T, H)` to `(B, T, V)`."""
        with self.accelerator.autocast():
            logits: Tensor = self._head(hidden)
        return logits.float()

    def _check_decoding(self, hidden: Tensor, logits: Tensor) -> None:
        """Raise, once for each shape, unless the logits are those of the output layer alone."""
        if hidden.shape in self._checked:
            return
        self._checked.add(hidden.shape)
        if not torch.equal(self._decode(hidden.float().contiguous()), logits.float()):
            raise BANError(
                f"teacher_cache: the logits of {type(self.plain).__name__} are not its output "
                "layer's of the last hidden states, which are stored: leave teacher_cache out."
            )


def _reading(dataset: ImageViews | TokenWindows) -> dict[str, Any]:
    """How a training set is read, with all that decides it beside its contents and the epoch."""
    if isinstance(dataset, ImageViews):
        return {"views": dataset.views_definition}
    return {name: getattr(dataset, name) for name in ("window", "columns", "warmup")}


def _shapes(inputs: Inputs) -> tuple[Any, ...]:
    """The names and shapes in a batch, but for its size."""
    return tuple((name, value.shape[1:]) for name, value in inputs.items())
