"""A frozen teacher at work in a training: asked once for each step, or replayed from its cache."""

import math
from collections.abc import Callable, Sequence
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

from ban_hf.data import ImageViews, collate
from ban_hf.data.description import POSITIONS, describe_data
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.lineage.environment import architecture, weights_digest
from ban_hf.lineage.record import sha256_of_json
from ban_hf.tasks.items import without_labels
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.performance import is_convolutional, lay_out
from ban_hf.training.recurrence import CarriedState
from ban_hf.training.teacher_cache import CacheContents, TeacherCache
from ban_hf.training.teacher_checks import ask_teacher, freeze

Inputs = dict[str, Any]  # a batch without labels, on the device
CPU_BATCH = 32  # images whose activations stay in a CPU's cache: a fifth faster than 128


class Teaching(TrainerCallback):
    """A teacher, frozen and prepared, with its hidden states and its cache.

    `model` is the teacher as it is asked. Without a cache every question is answered by it; with
    one only those that were never asked before. Of an image the cache holds the logits, of a text
    the hidden states before the output layer, which is applied again.
    """

    def __init__(
        self,
        teacher: nn.Module,
        carried: CarriedState,
        accelerator: Accelerator,
        args: BANTrainingArguments,
    ) -> None:
        self.carried, self.accelerator, self.args = carried, accelerator, args
        self.plain = freeze(lay_out(teacher) if args.fast else teacher)
        carried.add("teacher", teacher)
        self.model: nn.Module = accelerator.prepare_model(teacher, evaluation_mode=True)
        # Left in the accelerator's list, it would pass for the prepared student in an evaluation
        # before training, which then runs without autocast.
        accelerator._models.pop()
        fits_a_cache = args.fast and args.device.type == "cpu" and is_convolutional(teacher)
        self._batch_size = args.teacher_batch_size or (CPU_BATCH if fits_a_cache else None)
        self.cache: TeacherCache | None = None
        self._dataset: Any = None
        self._checked: set[torch.Size] = set()

    # Asking

    def ask(self, inputs: Inputs) -> Tensor:
        """The teacher's logits of a batch, `(N, C)` or `(B, T, V)`."""
        return self._outputs(inputs).logits

    def answers(self, batches: Sequence[Inputs], positions: Sequence[Any]) -> list[Tensor]:
        """The logits of each micro-batch of a step.

        Args:
            batches: of the step.
            positions: `(B,)` of each batch's items in the training set; None without a cache.
        """
        if self.cache is None:
            return self._ask_together(batches)
        if any(at is None for at in positions):
            raise BANError(
                "teacher_cache: a batch does not say where its items stand in train_dataset, which "
                "another training on the same dataset may have told it: give each its own."
            )
        found = [self._replayed(x, at) for x, at in zip(batches, positions, strict=True)]
        missing = [i for i, logits in enumerate(found) if logits is None]
        asked = iter(
            self._ask_and_keep([batches[i] for i in missing], [positions[i] for i in missing])
        )
        return [next(asked) if logits is None else logits for logits in found]

    def _outputs(self, inputs: Inputs, **options: Any) -> Any:
        outputs = ask_teacher(self.model, inputs | self.carried.give("teacher") | options)
        self.carried.keep("teacher", outputs)
        return outputs

    def _ask_together(self, batches: Sequence[Inputs]) -> list[Tensor]:
        """The logits of each batch, asked in batches of the teacher's own size."""
        size = self._batch_size
        if size is None or not batches or self.carried.carries("teacher"):
            return [self.ask(inputs) for inputs in batches]
        if len({_shapes(inputs) for inputs in batches}) > 1:  # texts, padded to other lengths
            return [logits for inputs in batches for logits in self._ask_together([inputs])]
        lengths = [len(next(iter(inputs.values()))) for inputs in batches]
        parts = {
            name: torch.cat([inputs[name] for inputs in batches]).split(size) for name in batches[0]
        }
        asked = [
            self.ask(dict(zip(parts, tensors, strict=True)))
            for tensors in zip(*parts.values(), strict=True)
        ]
        return list(torch.cat(asked).split(lengths))

    # The cache

    def open_cache(self, dataset: Any, collator: Any, epochs: int) -> None:
        """Open `args.teacher_cache` for a training.

        Args:
            dataset: what is trained on; its batches say where their items stand until it is closed.
            collator: what makes batches of it.
            epochs: how many there will be.

        Raises:
            ValueError: if such a dataset or teacher cannot be cached; if the folder holds something
                else, or its disk has no room.
        """
        if type(dataset) not in (ImageViews, TokenWindows):  # a subclass may show something else
            raise BANError(
                f"teacher_cache={self.args.teacher_cache!r} needs to know what the teacher is "
                "asked in each epoch: train_dataset must be ImageViews (load_images) or "
                f"TokenWindows, not {type(dataset).__name__}. Or leave teacher_cache out."
            )
        known = collate if isinstance(dataset, ImageViews) else default_data_collator
        if collator is not known and not isinstance(collator, DataCollatorWithPadding):
            raise BANError(
                f"teacher_cache cannot tell what data_collator={collator!r} makes of a batch: use "
                f"{known.__name__}, or leave teacher_cache out."
            )
        self._is_text, self._is_read = isinstance(dataset, TokenWindows), _reading(dataset)
        contents = self._contents(dataset)
        self._is_augmented = isinstance(dataset, ImageViews) and dataset.augment
        cache = TeacherCache(str(self.args.teacher_cache), contents, self.accelerator)
        self.cache_epochs = epochs if self._is_augmented else 1
        cache.open(range(self.cache_epochs))
        self.cache, self._checked = cache, set()
        self._dataset, self._gave_positions = dataset, dataset.gives_positions
        dataset.gives_positions = True

    def close_cache(self) -> None:
        """Let another training fill it."""
        if self.cache is not None:
            self.cache.close()
            self.cache, self._dataset.gives_positions = None, self._gave_positions

    @property
    def must_ask(self) -> bool:
        """Whether the teacher is needed in this epoch."""
        return self.cache is None or not self.cache.is_whole

    def begin_epoch(self, epoch: int) -> None:
        """Take up what is kept of an epoch."""
        if self.cache is not None:
            if _reading(self._dataset) != self._is_read:
                raise BANError("teacher_cache: train_dataset was changed during the training.")
            self.cache.begin(epoch if self._is_augmented else 0)

    def end_epoch(self) -> None:
        """Put what was learnt in this epoch in place."""
        if self.cache is not None:
            self.cache.end()

    def fill_cache(self, loader: Any, prepare: Callable[[Inputs], Inputs]) -> None:
        """Ask all that a training will ask, in the order in which the teacher reads.

        Args:
            loader: the training's.
            prepare: puts a batch where the model is.
        """
        with torch.random.fork_rng(devices=[]):  # loading draws from what students draw from
            for epoch in trange(self.cache_epochs, disable=self.args.disable_tqdm, unit="epoch"):
                self.begin_epoch(epoch)
                if self.must_ask:
                    self._ask_about(loader, epoch, prepare)
                self.end_epoch()

    def _ask_about(self, loader: Any, epoch: int, prepare: Callable[[Inputs], Inputs]) -> None:
        loader.set_epoch(epoch)  # handed on to the dataset, but not on several processes
        if isinstance(self._dataset, ImageViews):
            self._dataset.set_epoch(epoch)
        with self.carried.another_text(self.carried.reads_in_order):
            for batch in loader:
                positions = batch.pop(POSITIONS)
                self.answers([without_labels(prepare(batch))], [positions])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin_epoch(math.floor(state.epoch or 0))
        half_way = not float(state.epoch or 0).is_integer()
        must_read = self.must_ask and self.carried.carries("teacher")
        if half_way and must_read and not self.carried.holds("teacher"):
            raise BANError(
                "This checkpoint was saved while the teacher was replayed from a teacher_cache "
                "that is not there now: without the words that it read before, the teacher would "
                "say something else. Give the same teacher_cache, or start anew."
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end_epoch()

    def _contents(self, dataset: ImageViews | TokenWindows) -> CacheContents:
        """What the cache of this teacher on these data holds."""
        teacher = self.plain
        vars(dataset).pop("fingerprint", None)  # tensors may have been changed since it was read
        if isinstance(dataset, ImageViews):
            row: tuple[int, ...] = (len(dataset.label_names),)
        else:
            self._head = self._output_layer()
            row = (dataset.window, self._head.in_features)
        network = {"class": f"{type(teacher).__module__}.{type(teacher).__qualname__}"}
        if isinstance(teacher, PreTrainedModel):
            network = architecture(teacher)
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
        return CacheContents(key, len(dataset), row, self.args.teacher_cache_dtype, in_order)

    def _output_layer(self) -> nn.Linear:
        """What gives the teacher's logits, and whose input is kept.

        Raises:
            ValueError: if it has none.
        """
        plain: Any = self.plain
        head = plain.get_output_embeddings() if isinstance(plain, PreTrainedModel) else None
        if not isinstance(head, nn.Linear):
            raise BANError(
                f"teacher_cache: {type(self.plain).__name__} has no linear output layer, whose "
                "input could be kept: leave teacher_cache out."
            )
        return head

    def _replayed(self, inputs: Inputs, positions: Tensor) -> Tensor | None:
        """The logits of a batch that are kept."""
        assert self.cache is not None
        rows = self.cache.replay(positions)
        if rows is None or not self._is_text:
            return rows
        # Laid out as they were asked for: products of a slice are rounded otherwise.
        return self._decode(rows[:, : inputs["input_ids"].shape[1]].contiguous())

    def _ask_and_keep(self, batches: Sequence[Inputs], positions: Sequence[Tensor]) -> list[Tensor]:
        """The logits of each batch, as they will be replayed."""
        assert self.cache is not None
        if not self._is_text:
            asked = self._ask_together(batches)
            return [self.cache.keep(at, x) for at, x in zip(positions, asked, strict=True)]
        answers = []
        for inputs, at in zip(batches, positions, strict=True):
            outputs = self._outputs(inputs, output_hidden_states=True)
            hidden = outputs.hidden_states[-1]  # (B, T, H)
            self._check_decoding(hidden, outputs.logits)
            answers.append(self._decode(self.cache.keep(at, hidden)))
        return answers

    @torch.inference_mode()
    def _decode(self, hidden: Tensor) -> Tensor:
        """The output layer, as the teacher applies it: `(B, T, H)` to `(B, T, V)`."""
        with self.accelerator.autocast():
            logits: Tensor = self._head(hidden)
        return logits.float()

    def _check_decoding(self, hidden: Tensor, logits: Tensor) -> None:
        """Hold, once for each shape, that the logits are those of the output layer alone."""
        if hidden.shape in self._checked:
            return
        self._checked.add(hidden.shape)
        if not torch.equal(self._decode(hidden.float().contiguous()), logits.float()):
            raise BANError(
                f"teacher_cache: the logits of {type(self.plain).__name__} are not its output "
                "layer's of the last hidden states, which are kept: leave teacher_cache out."
            )


def _reading(dataset: ImageViews | TokenWindows) -> dict[str, Any]:
    """How a training set is read, with all that decides it beside its contents and the epoch."""
    if isinstance(dataset, ImageViews):
        return {"views": dataset.views_definition}
    return {name: getattr(dataset, name) for name in ("window", "columns", "warmup")}


def _shapes(inputs: Inputs) -> tuple[Any, ...]:
    """The names and shapes in a batch, but for its size."""
    return tuple((name, value.shape[1:]) for name, value in inputs.items())
