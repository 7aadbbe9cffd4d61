"""A frozen teacher in a training: run once for each step, or replayed from its cache."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import IterableDataset
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
from ban_hf.models.adapters import (
    adapter_state,
    base_of,
    check_kind,
    is_adapted,
    share_frozen,
    without_adapter,
)
from ban_hf.tasks.base import Items, Output
from ban_hf.tasks.pairing import Pairing, call_options
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.performance import (
    is_convolutional,
    prepare_frozen,
    to_channels_last,
)
from ban_hf.training.recurrence import CarriedState
from ban_hf.training.teacher_cache import TeacherCache

Inputs = dict[str, Any]  # a batch without labels, on the device
CPU_BATCH = 32  # images whose activations stay in a CPU's cache: a fifth faster than 128


def check_shares_nothing(teacher: nn.Module, student: nn.Module) -> None:
    """Raise if teacher and student are the same object or share weights that are trained."""
    trained = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    if teacher is student or any(id(parameter) in trained for parameter in teacher.parameters()):
        raise BANError(
            "teacher and model are the same object or share trainable weights, so that nothing "
            "would be learnt: give the student fresh weights, such as type(model)(config)."
        )


def check_storable(dataset: Any, args: BANTrainingArguments) -> None:
    """Raise unless `teacher_cache` can tell, by a position, what the teacher reads in an epoch."""
    # A subclass may show something else.
    if args.teacher_cache is None or type(dataset) in (ImageViews, TokenWindows):
        return
    is_stream = isinstance(dataset, IterableDataset | datasets.IterableDataset)
    why = ", a stream, whose items have no numbers" if is_stream else ""
    raise BANError(
        f"teacher_cache={args.teacher_cache!r} needs to know what the teacher reads in each epoch: "
        "train_dataset must be ImageViews (load_images) or TokenWindows, not "
        f"{type(dataset).__name__}{why}. Or leave teacher_cache out."
    )


def beside_student(
    teacher: nn.Module, student: nn.Module, *, is_ours: bool, can_share: bool
) -> nn.Module:
    """A teacher as it is run: of an adapter its base, with the adapter's layers in it.

    Args:
        teacher: a model; the base of a student with an adapter teaches with the adapter off.
        student: what it teaches.
        is_ours: whether nobody else has the teacher, so that it may hold the frozen weights of the
            student's base in place of its own.
        can_share: whether others may hold weights of the student.
    """
    if is_adapted(student):
        check_kind(student)
        if teacher is base_of(student):
            if not can_share:
                raise BANError(
                    "teacher is the base of model, whose weights are cut into parts (FSDP, "
                    "DeepSpeed) or cast (fp16_full_eval, bf16_full_eval): give the teacher by the "
                    "folder or Hub id of the base."
                )
            return without_adapter(student)
    if is_adapted(teacher):
        check_kind(teacher)
    if is_ours and can_share:
        share_frozen(teacher, student)
    return base_of(teacher)


class FrozenTeacher(TrainerCallback):
    """A teacher in evaluation mode, outside of every gradient.

    Attributes:
        pairing: how it reads a batch, and how it is compared with its student.
        plain: the teacher as it was given.
        model: the teacher as it is run.
    """

    needs_forward = True  # in this epoch

    def __init__(
        self,
        pairing: Pairing,
        carried: CarriedState,
        accelerator: Accelerator,
        args: BANTrainingArguments,
    ) -> None:
        self.carried, self.accelerator, self.args = carried, accelerator, args
        self.pairing, self.task, teacher = pairing, pairing.task, pairing.teacher
        if args.fast:
            to_channels_last(teacher)
        self.plain = teacher.eval().requires_grad_(False)
        carried.add("teacher", teacher)
        self.model = prepare_frozen(accelerator, teacher)
        fits_a_cache = args.fast and args.device.type == "cpu" and is_convolutional(teacher)
        self._batch_size = args.teacher_batch_size or (CPU_BATCH if fits_a_cache else None)

    def forward(self, inputs: Inputs, **options: Any) -> Any:
        """The teacher's outputs for a batch, in evaluation mode and without a graph."""
        if self.model.training:  # a callback or an evaluation switched it: BatchNorm would move
            self.model.eval()
        options |= self.carried.give("teacher") | call_options(self.plain)
        with torch.inference_mode():
            outputs = self.model(**inputs, **options)
        self.task.check_outputs(outputs)
        self.carried.keep("teacher", outputs)
        return outputs

    def items(self, batches: Sequence[Inputs], positions: Sequence[Any]) -> list[Items]:
        """The items of each micro-batch of a step, as its student gets it, in its classes.

        Positions `(B,)` are of its rows, None without a cache.
        """
        outputs = self.outputs([self.pairing.teacher_inputs(x) for x in batches], positions)
        return [self.pairing.items(x, y) for x, y in zip(batches, outputs, strict=True)]

    def evaluate(self, inputs: Inputs) -> Items:
        """The items of a batch of an evaluation, which no cache holds."""
        return self.pairing.items(inputs, self.forward(self.pairing.teacher_inputs(inputs)))

    def outputs(self, batches: Sequence[Inputs], positions: Sequence[Any]) -> list[Any]:
        """The outputs for each micro-batch, as the teacher reads it; see `items`."""
        return self._run(batches)

    def _run(self, batches: Sequence[Inputs]) -> list[Any]:
        """The outputs for each batch, run in batches of the teacher's own size."""
        size = self._batch_size
        if size is None or not batches or self.carried.carries("teacher"):
            return [self.forward(inputs) for inputs in batches]
        parts = [x for inputs in batches for x in inputs.values()]
        if not all(isinstance(x, Tensor) and x.ndim for x in parts):
            return [self.forward(inputs) for inputs in batches]
        if any(len({len(x) for x in inputs.values()}) > 1 for inputs in batches):
            return [self.forward(inputs) for inputs in batches]  # several images to a text
        shapes = {tuple((name, x.shape[1:]) for name, x in inputs.items()) for inputs in batches}
        if len(shapes) > 1:  # texts, padded to other lengths
            return [found for inputs in batches for found in self._run([inputs])]
        lengths = [len(next(iter(inputs.values()))) for inputs in batches]
        found = [self.forward(inputs) for inputs in _regroup(batches, size)]
        tensors = [{name: getattr(x, name) for name, _ in self.task.outputs} for x in found]
        return [SimpleNamespace(**outputs) for outputs in _regroup(tensors, lengths)]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        half_way = not float(state.epoch or 0).is_integer()
        must_read = self.needs_forward and self.carried.carries("teacher")
        if half_way and must_read and "teacher" not in self.carried.states:
            raise BANError(
                "This checkpoint was saved while the teacher was replayed from a teacher_cache "
                "that is not there now: without the words that it read before, the teacher would "
                "give other logits. Give the same teacher_cache, or start from the beginning."
            )


def _regroup(batches: Sequence[Inputs], sizes: int | list[int]) -> list[Inputs]:
    """The same rows in batches of other sizes."""
    parts = {name: torch.cat([x[name] for x in batches]).split(sizes) for name in batches[0]}
    return [dict(zip(parts, tensors, strict=True)) for tensors in zip(*parts.values(), strict=True)]


class CachedTeacher(FrozenTeacher):
    """A frozen teacher that runs only on what `args.teacher_cache` does not hold yet.

    Of an image the cache stores the logits, of a text the hidden states before the output layer,
    which is applied again.
    """

    _head: nn.Linear | None

    @cached_property
    def cache(self) -> TeacherCache:
        """The folder."""
        args = self.args
        return TeacherCache(str(args.teacher_cache), args.teacher_cache_dtype, self.accelerator)

    def open(self, dataset: Any, collator: Any, epochs: int) -> Any:
        """Open the cache for a training; a copy of its dataset, with the positions of items."""
        self._check_data(dataset, collator)
        self._given_dataset, self._dataset = dataset, copy.copy(dataset)
        dataset = self._dataset
        vars(dataset).pop("fingerprint", None)  # tensors may have been changed since it was read
        self._is_read = _reading(dataset)
        self._is_augmented, self._head = False, None
        self._checked: set[torch.Size] = set()
        if isinstance(dataset, ImageViews):
            self._is_augmented = dataset.augment
            row: tuple[int, ...] = (len(dataset.label_names),)
        else:
            self._head = self._output_layer()
            row = (dataset.window, self._head.in_features)
        self._epochs = epochs if self._is_augmented else 1
        in_order = self.carried.carries("teacher")
        self.cache.open(self._key(), (len(dataset), *row), self._epochs, in_order=in_order)
        dataset.gives_positions = True
        return dataset

    def _check_data(self, dataset: Any, collator: Any) -> None:
        """Raise unless it is known what the teacher reads in each epoch."""
        check_storable(dataset, self.args)
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

    def _output_layer(self) -> nn.Linear:
        """The layer that gives the teacher's logits, and whose input is stored."""
        plain = self.plain
        head = plain.get_output_embeddings() if isinstance(plain, PreTrainedModel) else None
        if not isinstance(head, nn.Linear):
            raise BANError(
                f"teacher_cache: {type(plain).__name__} has no linear output layer, whose "
                "input could be stored: leave teacher_cache out."
            )
        return head

    def _key(self) -> dict[str, Any]:
        """All that decides the teacher's outputs, by name."""
        teacher = self.plain
        if isinstance(teacher, PreTrainedModel):
            network = architecture(teacher).to_dict()
        else:
            name = f"{type(teacher).__module__}.{type(teacher).__qualname__}"
            network = {"class": name, "modules_sha256": sha256_of_json(repr(teacher))}
        # What is stored is the teacher's own output, in its own classes.
        pixels = self.pairing.pixels
        converted = {} if pixels is None else {"pixels": [x._asdict() for x in pixels]}
        key: dict[str, Any] = plain_json(
            converted
            | {
                "teacher": {"weights_sha256": weights_digest(teacher)}
                | network
                | adapter_state(teacher),
                "data": describe_data(self._dataset) | self._is_read,
                "precision": {
                    "autocast": self.accelerator.mixed_precision,
                    "weights": str(next(teacher.parameters()).dtype),
                    "channels_last": bool(self.args.fast) and is_convolutional(teacher),
                    "compiled": self.args.torch_compile,
                    "device": self.accelerator.device.type,
                    "float32_products": torch.get_float32_matmul_precision(),
                },
            }
        )
        return key

    def close(self) -> None:
        """Let another training fill it."""
        self.cache.close()
        self._dataset = self._given_dataset = None

    def fill(self, loader: Any, prepare: Callable[[Inputs], Inputs]) -> None:
        """Store all that a training will need, in the order in which the teacher reads."""
        with torch.random.fork_rng(devices=[]):  # loading draws from what students draw from
            for epoch in trange(self._epochs, disable=self.args.disable_tqdm, unit="epoch"):
                self._begin(epoch)
                loader.set_epoch(epoch)  # handed on to the dataset, but not on several processes
                if isinstance(self._dataset, ImageViews):
                    self._dataset.set_epoch(epoch)
                with self.carried.another_text(self.carried.reads_in_order):
                    for batch in loader if self.needs_forward else ():
                        positions = batch.pop(POSITIONS)
                        inputs = self.pairing.teacher_inputs(prepare(batch))
                        self.outputs([inputs], [positions])
                self.cache.end()

    def _begin(self, epoch: int) -> None:
        """Read what is stored of an epoch."""
        if _reading(self._given_dataset) != self._is_read:
            raise BANError("teacher_cache: train_dataset was changed during the training.")
        self.cache.begin(epoch if self._is_augmented else 0)
        self.needs_forward = not self.cache.is_whole

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(math.floor(state.epoch or 0))
        super().on_epoch_begin(args, state, control, **kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.cache.end()

    def outputs(self, batches: Sequence[Inputs], positions: Sequence[Any]) -> list[Any]:
        found = [self._replay(x, at) for x, at in zip(batches, positions, strict=True)]
        missing = [i for i, outputs in enumerate(found) if outputs is None]
        inputs = [batches[i] for i in missing]
        for i, rows in zip(missing, self._rows(inputs), strict=True):
            found[i] = self._decode(self.cache.keep(positions[i], rows))
        return [SimpleNamespace(logits=logits) for logits in found]

    def _replay(self, inputs: Inputs, positions: Tensor) -> Tensor | None:
        """The logits of a batch that are stored; None if one is missing."""
        rows = self.cache.replay(positions)
        if rows is None or self._head is None:
            return rows
        # Laid out as in the first run: products of a slice are rounded otherwise.
        return self._decode(rows[:, : inputs["input_ids"].shape[1]].contiguous())

    def _rows(self, batches: Sequence[Inputs]) -> Iterator[Tensor]:
        """What is to be stored of each batch."""
        if self._head is None:
            yield from (outputs.logits for outputs in self._run(batches))
            return
        for inputs in batches:
            outputs = self.forward(inputs, output_hidden_states=True)
            hidden = outputs.hidden_states[-1]  # (B, T, H)
            self._check_decoding(hidden, outputs.logits)
            yield hidden

    @torch.inference_mode()
    def _decode(self, rows: Tensor) -> Tensor:
        """The logits of what is stored: of a text, `(B, T, H)`, by the output layer."""
        if self._head is None:
            return rows
        with self.accelerator.autocast():
            logits: Tensor = self._head(rows)
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
