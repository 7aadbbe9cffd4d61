"""The tasks as plain facts: names, Auto classes and metrics.

Cards, reports and the command line need these words without torch, so nothing is imported here.
What a task does with a model is in `base` and `heads`; what a metric is called is in
`lineage.results`.
"""

from dataclasses import dataclass

#: The `model_type` of a `BornAgainEnsemble`, whose task is that of its members.
ENSEMBLE = "born_again_ensemble"


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a task without its code.

    Args:
        name: the Hub's pipeline tag, and the key in `CATALOG`.
        auto_class: name of the Auto class in `transformers` that loads its models.
        metrics: what it is measured by; the first is the headline, which is drawn and watched.
        loss_type: what `transformers` takes the loss of its models to be, by their class's name.
    """

    name: str
    auto_class: str
    metrics: tuple[str, ...] = ("loss",)
    loss_type: str | None = None


CATALOG = {
    facts.name: facts
    for facts in (
        TaskFacts(
            "image-classification",
            "AutoModelForImageClassification",
            ("error", "nll", "ece"),
            "ForImageClassification",
        ),
        TaskFacts(
            "text-classification",
            "AutoModelForSequenceClassification",
            ("error", "nll", "ece"),
            "ForSequenceClassification",
        ),
        TaskFacts(
            "text-generation",
            "AutoModelForCausalLM",
            ("perplexity", "nll", "above_entropy"),
            "ForCausalLM",
        ),
    )
}

#: Metrics of all tasks, and of a trainer, whose best value is the lowest.
LOWER_IS_BETTER = "loss teacher_kl error nll ece perplexity above_entropy".split()
