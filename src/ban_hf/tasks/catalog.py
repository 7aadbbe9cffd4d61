"""The tasks as plain facts: names, Auto classes, metrics and what their items are called.

Cards, reports and the command line need these words without torch, so nothing is imported here.
What a task does with a model is in `base`, `classification` and `language`.
"""

from dataclasses import dataclass

#: The `model_type` of a `BornAgainEnsemble`, whose task is that of its members.
ENSEMBLE = "born_again_ensemble"


@dataclass(frozen=True)
class Metric:
    """A number that a network is measured by.

    Args:
        name: its key in results and, after `eval_`, in logs.
        heading: its column's heading in a table, after the name of the split.
        unit: `"%"`, `"nats"`, or `""`.
        digits: after the decimal point.
        greater_is_better: whether a larger value is better.
    """

    name: str
    heading: str
    unit: str = ""
    digits: int = 2
    greater_is_better: bool = False


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a task without its code.

    Args:
        name: the Hub's pipeline tag, and the key in `CATALOG`.
        auto_class: name of the Auto class in `transformers` that loads its models.
        items_name: what its items are called, in the plural.
        metrics: what it is measured by; the first is the headline, which is drawn and watched.
    """

    name: str
    auto_class: str
    items_name: str = "items"
    metrics: tuple[Metric, ...] = (Metric("loss", "loss", "nats", 4),)

    @property
    def headline(self) -> Metric:
        """The metric that tables lead with, and that a training is watched by."""
        return self.metrics[0]


CLASSIFICATION_METRICS = (
    Metric("error", "error", "%", 2),
    Metric("nll", "NLL", "nats", 3),
    Metric("ece", "ECE", "%", 2),
)
LANGUAGE_METRICS = (
    Metric("perplexity", "perplexity", "", 2),
    Metric("nll", "nats per word", "nats", 4),
    Metric("above_entropy", "above the entropy", "nats", 4),
)

CATALOG = {
    facts.name: facts
    for facts in (
        TaskFacts(
            "image-classification",
            "AutoModelForImageClassification",
            "images",
            CLASSIFICATION_METRICS,
        ),
        TaskFacts(
            "text-classification",
            "AutoModelForSequenceClassification",
            "sentences",
            CLASSIFICATION_METRICS,
        ),
        TaskFacts("text-generation", "AutoModelForCausalLM", "words", LANGUAGE_METRICS),
    )
}

#: Metrics of all tasks, and of a trainer, whose best value is the lowest.
LOWER_IS_BETTER = tuple(
    dict.fromkeys(
        [
            "loss",
            "teacher_kl",
            *(
                metric.name
                for facts in CATALOG.values()
                for metric in facts.metrics
                if not metric.greater_is_better
            ),
        ]
    )
)
