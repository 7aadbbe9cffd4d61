"""Jobs made: the networks are those that a family trains, and the figures those they have."""

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import torch
from ban_hf.jobs.measurement import ImageTest, TextTest
from ban_hf.jobs.networks import make
from ban_hf.tasks.heads import load_classifier
from cached_students import KillAt
from family import Killed, identities
from tiny import distance

from ban_hf import BANTrainingArguments, BornAgainEnsemble, load_images, train_generations
from ban_hf.data import load_text
from ban_hf.jobs import networks as networks
from ban_hf.jobs.job import Job, in_order
from ban_hf.jobs.table import Table
from ban_hf.lineage.record import LOG, RECORD, Record
from ban_hf.lineage.results import Entry, item_losses, unpack_classes
from ban_hf.tasks.data import image_task, language_task, ready_batches, text_arguments


def entry_of(found: dict) -> Entry:
    """What a job's file says, as an entry of a table."""
    known = {key: found[key] for key in ("test", "outcomes")}
    return msgspec.convert(known | {"row": "", "column": "", "seed": 0}, Entry)


#: Smoke networks with dropout, so that every draw from a generator shows.
IMAGES = Table("table2", "smoke")
RESIDUAL = Table("table3", "smoke"), "wrn-28-2"
TEXTS = Table("table6", "smoke")


def made(home: Path, *jobs: Job, cache: Path | None = None) -> None:
    """Make jobs and what they need, unless it is there."""
    for job in in_order(jobs):
        if not (home / job.name / "results.json").is_file():
            make(job, home, cache if job.teachers else None)


def results(home: Path, job: Job) -> dict:
    return json.loads((home / job.name / "results.json").read_text("utf-8"))


def written(home: Path, jobs: Iterable[Job]) -> dict[str, bytes]:
    return {job.name: (home / job.name / "results.json").read_bytes() for job in in_order(jobs)}


def record(home: Path, job: Job) -> Record:
    return Record.read(home / job.name / "network")


def epochs(table: Table, number: int) -> Table:
    """The same table with longer trainings."""
    longer = Table(table.asked, table.budget)
    longer.spec["budgets"]["smoke"]["training"]["num_train_epochs"] = number
    return longer


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Folder of jobs, which tests share; none of what is there is changed."""
    return tmp_path_factory.mktemp("jobs")


def family_of(job: Job, folder: Path, seed: int, **training):
    """Generations 0 and 1 as `train_generations` makes them, with a job's arguments."""
    network, dataset = job.arguments["network"], dict(job.arguments["dataset"])
    args = BANTrainingArguments(
        output_dir=str(folder),
        **job.arguments["training"] | {"seed": seed} | training,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
    )
    if job.arguments["task"] == "image":
        args = ready_batches(args)
        task = image_task(load_images(**dataset), args, network["name"], network["args"])
    else:
        window, splits = dataset.pop("window"), load_text(**dataset)
        args = text_arguments(splits, args, window)
        task = language_task(splits, args, network["name"], network["args"], window)
    return train_generations(args=args, generations=1, **task)


@pytest.mark.parametrize(
    ("table", "row", "column", "training"),
    [
        (*RESIDUAL, "ban", {}),
        (IMAGES, "densenet-90-60", "dkpp", {}),
        (TEXTS, "char-cnn-lstm", "ban+l", {"objective": "kd", "label_weight": 1}),
        (TEXTS, "lstm", "ban", {}),
    ],
)
def test_teacher_and_student_are_generations_0_and_1_of_a_family(
    table, row, column, training, home, tmp_path
):
    job = table.job(row, column, seed=5)
    made(home, job)
    lineage = family_of(job, tmp_path, 5, **training)
    for generation, mine in zip(lineage.generations, (job.teachers[0], job), strict=True):
        ours = record(home, mine)
        assert ours.seed["init_sha256"] == generation.seed["init_sha256"]
        assert ours.seed["trained_sha256"] == generation.seed["trained_sha256"]
        assert ours.generation == generation.generation
        metric = "error" if table is not TEXTS else "perplexity"
        expected = generation.metric(metric, "test")
        assert results(home, mine)["test"][metric] == pytest.approx(expected, rel=1e-6)


def test_a_student_s_record_names_its_teacher(home):
    job = IMAGES.job("densenet-90-60", "ban", 1)
    made(home, job)
    teacher, student = record(home, job.teachers[0]), record(home, job)
    assert teacher.teacher is None
    assert student.teacher["weights_sha256"] == teacher.weights_sha256
    assert student.objective["name"] == "kd"
    assert results(home, job)["teachers"] == [job.teachers[0].name]


def test_shared_ends_are_the_teacher_s_and_are_not_trained(home):
    table = Table("table5", "smoke")
    job, baseline = (table.job("wide-2-1", column, 1) for column in ("ban", "baseline"))
    made(home, job, baseline)
    student, alone, teacher = (
        load_classifier(home / one.name / "network") for one in (job, baseline, job.teachers[0])
    )
    shared = 0
    for mine, theirs, own in zip(
        student.network.ends, teacher.network.ends, alone.network.ends, strict=True
    ):
        assert distance(mine, theirs) == 0
        assert distance(own, theirs) > 0
        shared += sum(p.numel() for p in theirs.parameters())
    ours, whole = (results(home, one)["parameters"] for one in (job, baseline))
    assert whole["all"] == whole["trainable"] == ours["all"] == ours["trainable"] + shared
    moved = distance(student, alone)  # the rest has been trained, from another seed
    assert moved > 0
    assert record(home, job).seed["trained_sha256"] != record(home, job).seed["init_sha256"]


def test_two_teachers_teach_what_their_saved_ensemble_does(home, tmp_path):
    """A student of two networks equals, bit for bit, one whose teacher is their ensemble."""
    table, row = RESIDUAL
    first = table.job(row, "ban", 5)
    lineage = family_of(first, tmp_path / "family", 5)
    assert len(lineage.generations) == 2
    arguments = table.job(row, "ban", 6).arguments
    of_both = Job(arguments, (first.teachers[0], first))
    whole = Job(first.arguments | {"network": {"name": "both", "args": {}}})  # stands for the mean
    of_whole = Job(arguments, (whole,))
    for name, source in (
        (first.teachers[0].name, "generation-0"),
        (first.name, "generation-1"),
        (whole.name, "ensemble"),
    ):
        shutil.copytree(tmp_path / "family" / source, tmp_path / name / "network")
    for job in (of_both, of_whole):
        make(job, tmp_path)
    one, other = (record(tmp_path, job).seed for job in (of_both, of_whole))
    assert one == other
    of_one = Job(arguments, (first,))
    make(of_one, tmp_path)
    assert record(tmp_path, of_one).seed["trained_sha256"] != one["trained_sha256"]
    assert record(tmp_path, of_one).seed["init_sha256"] == one["init_sha256"]


def test_an_ensemble_has_the_figures_of_the_mean_of_its_members(home):
    job = IMAGES.job("densenet-80-80", "ens3", 1)
    made(home, job)
    members = [load_classifier(home / member.name / "network") for member in job.members]
    splits = load_images(**job.arguments["dataset"])
    test = ImageTest(splits.test, batch_size=100)
    logits = test.predict(BornAgainEnsemble.from_members(members))  # (N, C)
    expected, found = test.metrics([logits]), results(home, job)
    assert found["test"]["error"] == expected["error"]
    assert found["test"]["nll"] == pytest.approx(expected["nll"], abs=1e-6)
    assert found["test"]["n"] == len(splits.test)
    assert unpack_classes(found["outcomes"]["predicted"]).tolist() == logits.argmax(1).tolist()
    assert found["members"] == [member.name for member in job.members]
    assert found["parameters"]["trainable"] == 0
    worst = [results(home, member)["test"]["nll"] for member in job.members]
    assert found["test"]["nll"] <= sum(worst) / 3  # the mean of probabilities, by Jensen
    assert not (home / job.name / "network").exists()


def test_an_ensemble_of_language_models_mixes_their_probabilities(home):
    members = tuple(TEXTS.job("lstm", column, 1) for column in ("teacher", "ban+l"))
    common = {name: members[0].arguments[name] for name in ("task", "dataset")}
    job = Job(common, members=members)
    made(home, job)
    networks = [load_classifier(home / member.name / "network") for member in members]
    dataset = {k: v for k, v in common["dataset"].items() if k != "window"}
    splits = load_text(**dataset)
    args = text_arguments(splits, BANTrainingArguments(per_device_eval_batch_size=200), 5)
    test = TextTest(language_task(splits, args, "lstm_200", {}, 5)["test_dataset"])
    expected = test.metrics([test.predict(BornAgainEnsemble.from_members(networks))])
    found = results(home, job)["test"]
    assert found["nll"] == pytest.approx(expected["nll"], abs=1e-6)
    assert found["n"] == expected["n"]


@pytest.mark.parametrize("column", ["teacher", "ban+l", "ens2"])
def test_what_is_kept_of_images_gives_back_the_error(column, home):
    job = IMAGES.job("densenet-112-33", column, 1)
    made(home, job)
    found = results(home, job)
    wrong, ones = item_losses(entry_of(found), found["labels"])
    assert 100 * wrong.sum() / ones.sum() == found["test"]["error"]
    assert len(wrong) == found["test"]["n"]
    filled = [(n, correct) for n, _, correct in found["reliability"] if n]
    right = sum(n * correct for n, correct in filled)
    assert right == pytest.approx(len(wrong) - wrong.sum(), abs=1e-3)


def test_what_is_kept_of_a_text_gives_back_the_perplexity(home):
    job = TEXTS.job("char-cnn-lstm", "halves", 1)
    made(home, job)
    found = results(home, job)
    nats, words = item_losses(entry_of(found), found["labels"])
    assert math.exp(nats.sum() / words.sum()) == pytest.approx(
        found["test"]["perplexity"], rel=1e-6
    )
    assert words.sum() == found["test"]["n"]
    assert len(words) > 1
    assert found["validation"]["perplexity"] > 1


def test_results_are_the_same_anywhere_with_a_cache_and_without(tmp_path):
    """Nothing in them tells when or where they were made, or that a teacher was not asked."""
    table, row = epochs(IMAGES, 2), "densenet-90-60"
    jobs = [table.job(row, column, 1) for column in ("ban", "cwtm", "dkpp", "ens2")]
    made(tmp_path / "here", *jobs)
    made(tmp_path / "elsewhere", *jobs)
    found = written(tmp_path / "here", jobs)
    assert written(tmp_path / "elsewhere", jobs) == found
    cached, cache = [job for job in jobs if job.cache_name == jobs[0].cache_name], tmp_path / "c"
    assert len(cached) == 3
    made(tmp_path / "cached", *cached, cache=cache)
    assert any(cache.rglob("*")), "the cache was not used"
    assert written(tmp_path / "cached", cached).items() <= found.items()
    for text in found.values():
        assert str(tmp_path).encode() not in text
        for word in (b"seconds", b"runtime", b"per_second", b"created", b"resumed"):
            assert word not in text


def kill_at(patch, step: int) -> None:
    def train_to_end(trainer):
        trainer.add_callback(KillAt(step))
        return original(trainer)

    original = networks.train_to_end
    patch.setattr(networks, "train_to_end", train_to_end)


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [(RESIDUAL[0], RESIDUAL[1], "ban"), (TEXTS, "lstm", "ban+l")],
)
def test_a_job_killed_again_and_again_gives_the_same_results(
    table, row, column, tmp_path, monkeypatch
):
    """In each of its epochs: it goes on from its last checkpoint, of which it keeps one."""
    job = epochs(table, 4).job(row, column, 1)
    made(tmp_path / "whole", job)
    steps = record(tmp_path / "whole", job).training["steps"]
    assert steps % 4 == 0
    made(tmp_path / "killed", *job.teachers)
    for step in (1, steps // 2 + 1, steps - 1):
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                made(tmp_path / "killed", job)
        assert not (tmp_path / "killed" / job.name / "results.json").exists()
        assert not (tmp_path / "killed" / job.name / "network").exists()
    made(tmp_path / "killed", job)
    assert written(tmp_path / "killed", [job]) == written(tmp_path / "whole", [job])
    one, other = (record(tmp_path / name, job) for name in ("killed", "whole"))
    assert one.seed == other.seed
    assert one.training["resumed_from"] == f"checkpoint-{steps * 3 // 4}"
    assert not (tmp_path / "killed" / job.name / "checkpoints").exists()


@pytest.mark.parametrize("function", ["_compact_log", "write_json"])
def test_a_job_killed_when_its_network_stands_does_not_train_it_again(
    function, home, tmp_path, monkeypatch
):
    job = RESIDUAL[0].job(RESIDUAL[1], "teacher", 1)
    made(home, job)

    def killed(first, *others):
        if function == "_compact_log" or first.name == "results.json":
            raise Killed
        return original(first, *others)

    original = getattr(networks, function)
    with monkeypatch.context() as patch:
        patch.setattr(networks, function, killed)
        with pytest.raises(Killed):
            made(tmp_path, job)
    before = identities(tmp_path / job.name / "network")
    assert RECORD in before
    made(tmp_path, job)
    assert identities(tmp_path / job.name / "network") == before
    assert written(tmp_path, [job]) == written(home, [job])


def test_a_job_killed_while_it_is_measured_goes_on_from_its_last_checkpoint(
    home, tmp_path, monkeypatch
):
    job = RESIDUAL[0].job(RESIDUAL[1], "teacher", 1)
    made(home, job)

    def killed(test, members):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(networks, "_measured", killed)
        with pytest.raises(Killed):
            made(tmp_path, job)
    assert not (tmp_path / job.name / "network").exists()
    made(tmp_path, job)
    training = record(tmp_path, job).training
    assert training["resumed_from"] == f"checkpoint-{training['steps']}"
    assert written(tmp_path, [job]) == written(home, [job])


@pytest.mark.parametrize(("table", "row"), [(IMAGES, "densenet-80-80"), (TEXTS, "lstm")])
def test_a_record_has_what_was_measured(table, row, home):
    job = table.job(row, "teacher", 1)
    made(home, job)
    test = results(home, job)["test"]
    metrics = record(home, job).metrics
    assert {m["name"]: m["value"] for m in metrics} == {k: test[k] for k in test if k != "n"}
    assert {(m["split"], m["n"], m["higher_is_better"]) for m in metrics} == {
        ("test", test["n"], False)
    }


def test_what_a_log_has_no_finite_value_of_is_left_out(tmp_path):
    """A perplexity that overflowed is null in JSON."""
    log = [{"epoch": 1, "loss": 2.5}, {"epoch": 1, "eval_perplexity": None, "eval_loss": 800.0}]
    (tmp_path / LOG).write_text(json.dumps(log), "utf-8")
    assert networks._compact_log(tmp_path) == [{"epoch": 1, "loss": 2.5, "eval_loss": 800.0}]


def test_the_log_has_a_line_an_epoch_and_ends_as_the_validation(home):
    job = epochs(IMAGES, 3).job("densenet-80-80", "ban", 1)
    made(home, job)
    found = results(home, job)
    assert [line["epoch"] for line in found["log"]] == [1, 2, 3]
    last = found["log"][-1]
    assert {"loss", "learning_rate", "eval_error", "eval_teacher_agreement"} <= last.keys()
    assert found["validation"] == {"error": last["eval_error"]}
    assert found["train_loss"] == last["label_loss"]
    assert torch.tensor([line["learning_rate"] for line in found["log"]]).diff().lt(0).all()
