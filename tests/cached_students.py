"""Students of a teacher whose outputs may be kept, and a kill in between."""

import tiny
from family import Killed, views
from transformers import TrainerCallback

from ban_hf import BANTrainer, collate

EPOCHS = 3


def images(**changes):
    """24 augmented images, in three batches."""
    return views(**dict(n=24, seed=0) | changes)


def student(folder, data=None, teacher_seed=2, student_seed=1, callbacks=None, **changes):
    """A trainer of a student of 24 images."""
    options = dict(
        per_device_train_batch_size=8,
        num_train_epochs=EPOCHS,
        max_steps=-1,
        remove_unused_columns=False,
    )
    return BANTrainer(
        tiny.vit(student_seed),
        tiny.arguments(folder, **options | changes),
        teacher=tiny.confident(tiny.vit(teacher_seed)),
        train_dataset=images() if data is None else data,
        data_collator=collate,
        callbacks=callbacks,
    )


class KillAt(TrainerCallback):
    """Kills the training at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed
