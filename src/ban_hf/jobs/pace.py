"""How fast this machine trains and evaluates a network: a training that is thrown away."""

import copy
from collections.abc import Mapping
from typing import Any

from accelerate.utils import broadcast_object_list
from torch.utils.data import Subset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ban_hf.jobs.cost import Pace, seconds_now
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.callbacks import check_trained
from ban_hf.training.trainer import BANTrainer

WARM_UP, TIMED = 3, 20  # steps
SECONDS = 30.0  # that the timed steps may take; there are then fewer
BATCHES = 4  # of an evaluation
OF_TRAINER = ("train_dataset", "data_collator", "compute_metrics", "processing_class")


def throw_away(args: BANTrainingArguments, folder: str) -> BANTrainingArguments:
    """The arguments of a training that is short, silent, and leaves nothing."""
    args = copy.copy(args)
    args.output_dir, args.max_steps = folder, WARM_UP + TIMED
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.eval_on_start = args.load_best_model_at_end = args.push_to_hub = False
    args.report_to, args.disable_tqdm = [], True
    args.teacher_cache = None  # what is timed is a teacher who is asked
    return args


def time_training(
    family: Mapping[str, Any], args: BANTrainingArguments, teacher: PreTrainedModel | None
) -> tuple[Pace, BANTrainer]:
    """Train a fresh network for some steps, and evaluate it on some of the test set."""
    set_seed(args.seed)
    clock, given = StepClock(), {name: family[name] for name in OF_TRAINER if name in family}
    model = family["model_init"](0)
    trainer = BANTrainer(model, args, teacher=teacher, callbacks=[clock], **given)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    check_trained(trainer.state.global_step)
    evaluation = _pass(trainer, family.get("eval_dataset"))
    test = _pass(trainer, family["test_dataset"])
    return Pace(clock.step, evaluation, test, clock.steps), trainer


class StepClock(TrainerCallback):
    """Times some steps of a training after the first few, and ends it."""

    def __init__(self) -> None:
        self.steps = TIMED  # as long as these do not take too long

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP - 1:
            self.began = seconds_now(args.device)
        elif state.global_step == WARM_UP:
            affordable = int(SECONDS / max(1e-6, seconds_now(args.device) - self.began))
            # All processes must end at the same step.
            self.steps = broadcast_object_list([min(TIMED, max(2, affordable))])[0]
            self.began = seconds_now(args.device)
        elif state.global_step == WARM_UP + self.steps:
            self.step = (seconds_now(args.device) - self.began) / self.steps
            control.should_training_stop = True


def _pass(trainer: BANTrainer, dataset: Any) -> float:
    """Seconds of an evaluation: from a few batches, after one that warms up."""
    if dataset is None:
        return 0.0
    args = trainer.args
    batch = args.eval_batch_size * args.world_size
    parts = [Subset(dataset, range(min(len(dataset), n * batch))) for n in (1, BATCHES)]
    trainer.evaluate(parts[0])
    began = seconds_now(args.device)
    trainer.evaluate(parts[1])
    return (seconds_now(args.device) - began) * len(dataset) / len(parts[1])
