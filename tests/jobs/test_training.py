"""Jobs of a table done: the networks are those that a family trains, and the figures theirs."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from cached_students import KillAt
from family import Killed
from tiny import distance

from ban_hf import BANTrainingArguments, BornAgainEnsemble, train_generations
from ban_hf.data.arguments import DataArguments, load_splits
from ban_hf.jobs import training
from ban_hf.jobs.evaluation import evaluate
from ban_hf.jobs.job import Job, in_order
from ban_hf.jobs.reproduction import TASKS, run_cell
from ban_hf.jobs.results import entry_of, read_log
from ban_hf.jobs.setup import prepare
from ban_hf.jobs.table import Table
from ban_hf.jobs.training import evaluation_file, load_model, read_evaluation, scratch
from ban_hf.lineage.files import write_json
from ban_hf.lineage.record import LOG, Record
from ban_hf.lineage.results import Entry, item_losses, unpack_classes

#: Smoke networks with dropout, so that every draw from a generator shows.
IMAGES = Table("table2", "smoke")
RESIDUAL = Table("table3", "smoke"), "wrn-28-2"
TEXTS = Table("table6", "smoke")


def made(home: Path, *jobs: Job, cache: Path | None = None) -> None:
    """Do jobs and what they need, unless it is done."""
    for job in in_order(jobs):
        if read_evaluation(job, home) is None:
            run_cell(job, home, {job.folder: str(cache)} if cache and job.teachers else {})


def results(home: Path, job: Job) -> dict:
    found = read_evaluation(job, home)
    assert found is not None
    return found


def entry(home: Path, job: Job) -> Entry:
    metric = {"image": "error", "text": "perplexity"}[job.arguments["task"]]
    return entry_of(job, home, results(home, job), row="r", column="c", seed=1, metric=metric)


def written(home: Path, jobs: Iterable[Job]) -> dict[str, bytes]:
    return {job.folder: evaluation_file(job, home).read_bytes() for job in in_order(jobs)}


def record(home: Path, job: Job) -> Record:
    return Record.read(home / job.folder)


def seeds(record: Record) -> tuple:
    """Of a network: its seed, and the digests of its weights before and after the training."""
    return record.seed.seed, record.seed.init_sha256, record.seed.trained_sha256


def epochs(table: Table, number: int) -> Table:
    """The same table with longer trainings."""
    longer = Table(table.asked, table.budget)
    longer.spec["budgets"]["smoke"]["training"]["num_train_epochs"] = number
    return longer


def prepared(job: Job, **changes):
    """Arguments and setup of a job, as a recipe makes them."""
    arguments = job.arguments
    args = BANTrainingArguments(
        **arguments["training"] | changes,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
    )
    dataset = DataArguments.from_mapping(arguments["dataset"])
    network, splits = arguments["network"], load_splits(dataset, TASKS[arguments["task"]])
    return prepare(splits, args, network["name"], network["args"], dataset.window)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Folder of jobs, which tests share; none of what is there is changed."""
    return tmp_path_factory.mktemp("jobs")


def family_of(job: Job, folder: Path, seed: int, **changes):
    """Generations 0 and 1 as `train_generations` makes them, with a job's arguments."""
    args, setup = prepared(job, output_dir=str(folder), seed=seed, **changes)
    return train_generations(
        setup.model_init,
        args,
        generations=1,
        train_dataset=setup.train_dataset,
        eval_dataset=setup.eval_dataset,
        test_dataset=setup.test_dataset,
        **setup.trainer,
    )


@pytest.mark.parametrize(
    ("table", "row", "column", "changes"),
    [
        (*RESIDUAL, "ban", {}),
        (TEXTS, "char-cnn-lstm", "ban+l", {"objective": "kd", "label_weight": 1}),
        (TEXTS, "lstm", "ban", {"label_weight": 0}),
    ],
)
def test_teacher_and_student_are_generations_0_and_1_of_a_family(
    table, row, column, changes, home, tmp_path
):
    job = table.job(row, column, seed=5)
    made(home, job)
    lineage = family_of(job, tmp_path, 5, **changes)
    for generation, mine in zip(lineage.generations, (job.teachers[0], job), strict=True):
        ours = record(home, mine)
        assert seeds(ours) == seeds(generation)
        assert ours.generation == generation.generation
        metric = "error" if table is not TEXTS else "perplexity"
        assert results(home, mine)["test"][metric] == generation.metric(metric, "test")


def test_a_student_s_record_names_its_teacher_and_what_was_measured(home):
    job = IMAGES.job("densenet-90-60", "ban", 1)
    made(home, job)
    teacher, student = record(home, job.teachers[0]), record(home, job)
    assert teacher.teachers == ()
    assert [one.weights_sha256 for one in student.teachers] == [teacher.weights_sha256]
    assert student.objective.name == "kd"
    assert entry(home, job).teachers == (job.teachers[0].folder,)
    test = results(home, job)["test"]
    found = {m.name: m.value for m in student.metrics}
    assert found == {name: value for name, value in test.items() if name != "n"}
    assert {(m.split, m.n) for m in student.metrics} == {("test", test["n"])}
    better = {m.name for m in student.metrics if m.higher_is_better}
    assert better == {"teacher_agreement"}


def test_shared_ends_are_the_teacher_s_and_are_not_trained(home):
    table = Table("table5", "smoke")
    job, baseline = (table.job("wide-2-1", column, 1) for column in ("ban", "baseline"))
    made(home, job, baseline)
    student, alone, teacher = (
        load_model(home / one.folder) for one in (job, baseline, job.teachers[0])
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
    assert distance(student, alone) > 0  # the rest has been trained, from another seed
    seed = record(home, job).seed
    assert seed.trained_sha256 != seed.init_sha256
    assert record(home, job).architecture.shared_ends
    assert not record(home, baseline).architecture.shared_ends


def test_two_teachers_teach_what_their_saved_ensemble_does(tmp_path):
    """A student of two networks equals, bit for bit, one whose teacher is their ensemble."""
    table, row = RESIDUAL
    first = table.job(row, "ban", 5)
    assert len(family_of(first, tmp_path / "family", 5).generations) == 2
    arguments = table.job(row, "ban", 6).arguments
    whole = Job("whole", first.arguments, generation=1)  # stands for the mean
    for job, source in (
        (first.teachers[0], "generation-0"),
        (first, "generation-1"),
        (whole, "ensemble"),
    ):
        shutil.copytree(tmp_path / "family" / source, tmp_path / job.folder)
    known = record(tmp_path, whole)  # as that of a network, which alone has a seed
    known.kind, known.generation, known.members = "generation", 1, ()
    known.seed = record(tmp_path, first).seed
    known.write(tmp_path / whole.folder)
    found = {}
    for name, teachers in {
        "both": (first.teachers[0], first),
        "whole-student": (whole,),
        "one": (first,),
    }.items():
        job = Job(name, arguments, teachers, generation=2)
        run_cell(job, tmp_path, {})
        found[name] = seeds(record(tmp_path, job))
    assert found["both"] == found["whole-student"]
    assert found["one"][:2] == found["both"][:2]
    assert found["one"][2] != found["both"][2]


def test_an_ensemble_has_the_figures_of_the_mean_of_its_members(home):
    job = IMAGES.job("densenet-80-80", "ens3", 1)
    made(home, job)
    members = [load_model(home / member.folder) for member in job.members]
    splits = load_splits(DataArguments.from_mapping(job.arguments["dataset"]), TASKS["image"])
    with torch.no_grad():
        items = splits.test.__getitems__(range(len(splits.test)))
        logits = [model.eval()(pixel_values=items["pixel_values"]).logits for model in members]
    mean = sum(each.double().softmax(1) for each in logits) / 3  # (N, C)
    found = results(home, job)
    wrong = (mean.argmax(1) != items["labels"]).double().mean().item()
    nll = -mean.gather(1, items["labels"][:, None]).log().mean().item()
    assert found["test"]["error"] == pytest.approx(100 * wrong)
    assert found["test"]["nll"] == pytest.approx(nll, abs=1e-6)
    assert found["test"]["n"] == len(splits.test)
    assert unpack_classes(found["outcomes"]["predicted"]).tolist() == mean.argmax(1).tolist()
    each = [results(home, member) for member in job.members]
    assert found["parameters"] == {
        "all": sum(one["parameters"]["all"] for one in each),
        "trainable": 0,
    }
    # the mean of probabilities, by Jensen
    assert found["test"]["nll"] <= sum(one["test"]["nll"] for one in each) / 3
    assert entry(home, job).members == tuple(member.folder for member in job.members)
    assert not (home / job.folder).exists()
    lost, ones = item_losses(entry(home, job), found["labels"])
    assert 100 * lost.sum() / ones.sum() == pytest.approx(found["test"]["error"], rel=1e-12)
    right = sum(n * correct for n, _, correct in found["reliability"] if n)
    assert right == pytest.approx(len(lost) - lost.sum(), abs=1e-3)


def test_an_ensemble_of_language_models_mixes_their_probabilities(home):
    members = tuple(TEXTS.job("lstm", column, 1) for column in ("teacher", "ban+l"))
    common = {name: members[0].arguments[name] for name in ("task", "dataset")}
    job = Job("ensemble-of-texts", common, members=members, saved=False)
    made(home, job)
    networks = [load_model(home / member.folder) for member in members]
    args, setup = prepared(members[0], output_dir="unused")
    trainer = training.measuring_trainer(networks[0], setup, args, home / "unused")
    loader = trainer.get_eval_dataloader(setup.test_dataset)
    whole = BornAgainEnsemble.from_members(networks)
    expected = evaluate([whole], [loader], trainer.task, in_order=True).metrics(setup.entropy)
    found = results(home, job)["test"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert {"nll", "perplexity", "above_entropy", "n"} <= found.keys()


def test_what_is_kept_of_a_text_gives_back_the_perplexity(home):
    job = TEXTS.job("char-cnn-lstm", "halves", 1)
    made(home, job)
    found, test = entry(home, job), results(home, job)["test"]
    nats, words = item_losses(found, None)
    assert math.exp(nats.sum() / words.sum()) == pytest.approx(test["perplexity"], rel=1e-6)
    assert words.sum() == test["n"]
    assert len(words) > 1
    assert found.validation["perplexity"] > 1


def test_results_are_the_same_anywhere_with_a_cache_and_without(tmp_path):
    """Nothing in them says when or where they were made, or that a teacher did not run."""
    table, row = epochs(IMAGES, 2), "densenet-90-60"
    jobs = [table.job(row, column, 1) for column in ("ban", "cwtm", "dkpp", "ens2")]
    made(tmp_path / "here", *jobs)
    found = written(tmp_path / "here", jobs)
    cached, cache = jobs[:3], tmp_path / "c"  # of one teacher and one seed
    made(tmp_path / "cached", *cached, cache=cache)
    assert any(cache.rglob("*")), "the cache was not used"
    assert written(tmp_path / "cached", cached).items() <= found.items()
    for text in found.values():
        assert str(tmp_path).encode() not in text
        for word in (b"seconds", b"runtime", b"per_second", b"created", b"resumed"):
            assert word not in text


def kill_at(patch, step: int) -> None:
    def train_to_end(trainer, seed):
        trainer.add_callback(KillAt(step))
        return original(trainer, seed)

    original = training.train_to_end
    patch.setattr(training, "train_to_end", train_to_end)


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
    steps = record(tmp_path / "whole", job).training.steps
    assert steps % 4 == 0
    killed = tmp_path / "killed"
    made(killed, *job.teachers)
    for step in (1, steps // 2 + 1, steps - 1):
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                made(killed, job)
        assert read_evaluation(job, killed) is None
        assert not (killed / job.folder).exists()
    made(killed, job)
    assert written(killed, [job]) == written(tmp_path / "whole", [job])
    one, other = (record(folder, job) for folder in (killed, tmp_path / "whole"))
    assert one.seed == other.seed
    assert one.training.resumed_from == f"checkpoint-{steps * 3 // 4}"
    assert read_log(killed / job.folder) == read_log(tmp_path / "whole" / job.folder)
    assert not scratch(killed, job).exists()


@pytest.mark.parametrize("function", ["measure", "write_evaluation", "os.replace"])
def test_a_job_killed_when_it_is_trained_goes_on_from_its_last_checkpoint(
    function, home, tmp_path, monkeypatch
):
    job = RESIDUAL[0].job(RESIDUAL[1], "teacher", 1)
    made(home, job)

    def killed(*args, **kwargs):
        if function != "os.replace" or args[1] == tmp_path / job.folder:
            raise Killed
        return original(*args, **kwargs)

    owner = training.os if function == "os.replace" else training
    original = getattr(owner, function.rpartition(".")[2])
    with monkeypatch.context() as patch:
        patch.setattr(owner, function.rpartition(".")[2], killed)
        with pytest.raises(Killed):
            made(tmp_path, job)
    assert not (tmp_path / job.folder).exists()
    assert read_evaluation(job, tmp_path) is None
    made(tmp_path, job)
    found = record(tmp_path, job).training
    assert found.resumed_from == f"checkpoint-{found.steps}"
    assert written(tmp_path, [job]) == written(home, [job])


def test_a_measurement_of_other_networks_is_none(home, tmp_path):
    job = IMAGES.job("densenet-112-33", "ens2", 1)
    made(home, job)
    shutil.copytree(home, tmp_path / "copy")
    assert read_evaluation(job, tmp_path / "copy") == results(home, job)
    other = IMAGES.job("densenet-112-33", "ban-2", 2)
    made(tmp_path / "copy", other)
    member = tmp_path / "copy" / job.members[1].folder
    shutil.rmtree(member)
    assert read_evaluation(job, tmp_path / "copy") is None
    shutil.copytree(tmp_path / "copy" / other.folder, member)
    assert read_evaluation(job, tmp_path / "copy") is None
    assert read_evaluation(job.members[1], tmp_path / "copy") is None


def test_a_log_may_lack_values(tmp_path):
    """A perplexity that overflowed is null in JSON; a published network has no log."""
    assert read_log(tmp_path) == {}
    log = [{"epoch": 1, "loss": 2.5}, {"epoch": 1, "eval_perplexity": None, "eval_loss": 800.0}]
    write_json(tmp_path / LOG, [*log, {"epoch": 2, "eval_perplexity": 1234.567}])
    assert read_log(tmp_path) == {
        "epoch": (1, 2),
        "loss": (2.5, None),
        "eval_loss": (800.0, None),
        "eval_perplexity": (None, 1235),
    }


def test_the_log_has_a_number_an_epoch_and_ends_as_the_validation(home):
    job = epochs(IMAGES, 3).job("densenet-80-80", "ban", 1)
    made(home, job)
    found = entry(home, job)
    assert found.log["epoch"] == (1, 2, 3)
    assert {"loss", "eval_error", "eval_teacher_agreement"} <= found.log.keys()
    assert found.validation == {"error": found.log["eval_error"][-1]}
    assert found.best_validation["error"] == min(found.log["eval_error"])
    assert found.train_loss == found.log["label_loss"][-1]
    assert torch.tensor(found.log["learning_rate"]).diff().lt(0).all()
    assert found.network_seed == job.arguments["training"]["seed"]
    assert found.configuration == job.arguments
