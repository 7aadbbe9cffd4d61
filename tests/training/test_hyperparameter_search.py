"""`hyperparameter_search` over objective, temperature and weights, with a new student each time."""

import pytest
import torch
from family import views
from tiny import CLASSES, Images, arguments, cifar, confident, distance, vit, weights
from transformers import ViTForImageClassification

from ban_hf import BANTrainer, collate
from ban_hf.errors import BANError

optuna = pytest.importorskip("optuna")


def student() -> ViTForImageClassification:
    """Fresh weights, from the seed of the arguments."""
    return ViTForImageClassification(vit().config)


def trainer(output_dir, teacher=None, model_init=student, **changes) -> BANTrainer:
    return BANTrainer(
        args=arguments(output_dir, **changes),
        model_init=model_init,
        teacher=confident(vit(2)) if teacher is None else teacher,
        train_dataset=Images(32),
        eval_dataset=Images(9, seed=1),
    )


def search(found: BANTrainer, trials: list[dict], **options):
    """Search over these hyperparameters, one after the other; what each trial was rated."""
    ratings = []
    rate = options.pop("compute_objective", found._rate)

    def note(metrics):
        ratings.append(rate(metrics))
        return ratings[-1]

    best = found.hyperparameter_search(
        lambda trial: trials[trial.number], note, n_trials=len(trials), **options
    )
    return best, ratings


def test_a_trial_is_the_training_with_its_arguments(tmp_path):
    """Also where a trial leaves out an argument that the one before it had."""
    trials = [
        dict(objective="kd", temperature=3.0, learning_rate=0.2),
        dict(objective="cwtm", learning_rate=0.2),
        dict(objective="kd", teacher_weight=0.5, label_weight=0.7, learning_rate=0.1),
        dict(objective="dkpp", learning_rate=0.1),
    ]
    best, ratings = search(trainer(tmp_path / "search"), trials)
    expected = []
    for trial in trials:
        direct = trainer(tmp_path / "direct", **trial)
        direct.train()
        expected.append(direct.evaluate()["eval_loss"])
    assert ratings == expected
    assert len(set(ratings)) == len(trials)
    assert best.objective == min(expected)
    assert int(best.run_id) == expected.index(min(expected))


def test_by_default_a_trial_is_rated_as_trainer_rates_it(tmp_path):
    found = trainer(tmp_path)
    best = found.hyperparameter_search(lambda trial: {"temperature": 2.0}, n_trials=1)
    direct = trainer(tmp_path, temperature=2.0)
    direct.train()
    metrics = direct.evaluate()
    assert metrics["eval_teacher_kl"] > 0
    assert best.objective == metrics["eval_loss"]
    rated = trainer(tmp_path)
    rated.compute_metrics = lambda prediction: {"half": 0.5, "quarter": 0.25}
    best = rated.hyperparameter_search(lambda trial: {}, n_trials=1)
    assert best.objective == 0.75


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (dict(temperature=-1.0), "temperature=-1.0 must be above 0"),
        (dict(objective="kdd"), r"objective='kdd' is unknown. Did you mean 'kd'"),
        (dict(teacher_weight=0.0), "both 0: there is nothing to learn from"),
    ],
)
def test_a_value_that_means_nothing_is_refused(trial, message, tmp_path):
    with pytest.raises(BANError, match=message):
        search(trainer(tmp_path), [trial])


def test_a_trial_that_diverges_is_pruned_and_the_search_goes_on(tmp_path):
    trials = [dict(learning_rate=1e30), dict(learning_rate=0.1)]
    best, ratings = search(trainer(tmp_path), trials)
    assert best.run_id == "1"
    assert len(ratings) == 1
    with pytest.raises(FloatingPointError):
        trainer(tmp_path, learning_rate=1e30).train()


def test_each_student_is_compared_with_the_teacher(tmp_path):
    teacher = confident(vit(2))
    models = iter([vit(1), vit(1), teacher])
    found = trainer(tmp_path, teacher, model_init=lambda: next(models))
    before = weights(teacher)
    with pytest.raises(BANError, match="the same object or share trainable weights"):
        search(found, [{}, {}])
    assert distance(teacher, before) == 0
    sizes = iter([CLASSES, CLASSES + 1])
    found = trainer(tmp_path, teacher, model_init=lambda: vit(1, num_labels=next(sizes)))
    with pytest.raises(BANError, match=f"teacher has {CLASSES} classes and model has 6"):
        found.train()


def test_each_student_has_its_labels_checked_and_the_fast_layout(tmp_path):
    def convolutional():
        return cifar(torch.initial_seed() % 1000)

    found = trainer(tmp_path, cifar(2), model_init=convolutional, fast=True, max_steps=1)
    found.train_dataset = Images(16, 32)
    for seed in (1, 2):
        found.args.seed = seed
        found._classes = "of the last student"
        found.train()
        assert found._classes == CLASSES
        weight = found.model.network.stem.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_teacher_s_outputs_are_stored_in_the_first_trial_and_replayed_in_the_others(tmp_path):
    trials = [dict(num_train_epochs=1), dict(num_train_epochs=2, objective="cwtm"), dict(seed=9)]
    rated, runs = [], []
    for name, cache in (("online", None), ("cached", str(tmp_path / "cache"))):
        teacher = confident(vit(2))
        found = BANTrainer(
            args=arguments(
                tmp_path / name, max_steps=-1, remove_unused_columns=False, teacher_cache=cache
            ),
            model_init=student,
            teacher=teacher,
            train_dataset=views(24),
            eval_dataset=views(9, seed=1, augment=False),
            data_collator=collate,
        )
        training = []
        found.teacher.register_forward_hook(
            lambda *_, of=found, to=training: to.append(of._evaluating)
        )
        rated.append(search(found, trials)[1])
        runs.append(training.count(False))
    assert rated[0] == rated[1]
    assert runs == [2 * (1 + 2 + 2), 2 * 2]  # each batch of two epochs, once
