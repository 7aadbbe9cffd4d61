"""A search of hyperparameters that knows of a distillation: its arguments, and what it measures."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HPSearchBackend, TrainOutput, default_compute_objective

from ban_hf.training.arguments import BANTrainingArguments

SEARCHED = ("objective", "temperature", "teacher_weight", "label_weight")


class SearchingTrainer(Trainer):
    """What `BANTrainer` adds to `Trainer.hyperparameter_search`.

    Attributes:
        measured: names of an evaluation's metrics that `Trainer` does not have.
    """

    args: BANTrainingArguments
    hp_search_backend: Any
    measured: frozenset[str] = frozenset()
    _given: dict[str, Any] | None = None  # the arguments before a search

    def hyperparameter_search(
        self,
        hp_space: Callable[..., dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As in `Trainer`, also over `objective`, `temperature` and the weights.

        By default a trial is rated as there, by the loss of an evaluation, or the sum of what
        `compute_metrics` gives: what we measure besides does not count. A trial whose loss becomes
        NaN under a teacher is pruned, where optuna searches in one process.
        """
        self._given = {name: getattr(self.args, name) for name in SEARCHED}
        rate = self._rate if compute_objective is None else compute_objective
        return super().hyperparameter_search(hp_space, rate, *args, **kwargs)

    def _rate(self, metrics: dict[str, float]) -> float:
        of_trainer = {name: x for name, x in metrics.items() if name not in self.measured}
        return float(default_compute_objective(of_trainer))

    def _hp_search_setup(self, trial: Any) -> None:
        """Set a trial's arguments; one that its space leaves out is not the last trial's."""
        if trial is not None and self._given is not None:
            for name, value in self._given.items():
                setattr(self.args, name, value)
        super()._hp_search_setup(trial)
        self.args.check()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            return super().train(*args, **kwargs)
        except FloatingPointError as error:
            if self.hp_search_backend != HPSearchBackend.OPTUNA or self.args.world_size > 1:
                raise
            from optuna import TrialPruned  # it is installed, since it runs this trial

            raise TrialPruned(str(error)) from error  # the search goes on
