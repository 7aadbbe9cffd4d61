"""A job made: a network trained or an ensemble put together, and measured on the test set.

A job's folder holds `network/` (model, `lineage.json`, log) and, last of all, `results.json`, by
which it is known to be finished. Whether it ran at one go, or was killed and went on from its last
checkpoint, that file is the same: it holds no times.
"""

import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, set_seed

from ban_hf.data import ImageSplits, TextSplits, describe_data, load_images, load_text
from ban_hf.jobs.generation import train_to_end
from ban_hf.jobs.job import Job, code_sha256
from ban_hf.jobs.measurement import ImageTest, TextTest
from ban_hf.lineage.environment import (
    architecture,
    canonical_arguments,
    hardware,
    versions,
    weights_digest,
)
from ban_hf.lineage.record import LOG, RECORD, Record, reference, sha256_of_json, write_json
from ban_hf.models import share_ends
from ban_hf.reports.outcomes import block_losses, pack_classes
from ban_hf.tasks.data import image_task, language_task, ready_batches, text_arguments
from ban_hf.tasks.heads import load_classifier
from ban_hf.tasks.metrics import reliability_sums
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.callbacks import GenerationProgress
from ban_hf.training.ensemble import BornAgainEnsemble, log_mean_exp, mean_logits
from ban_hf.training.performance import sequence_arguments
from ban_hf.training.trainer import BANTrainer

RESULTS, NETWORK = "results.json", "network"
#: What is kept of each epoch's log; a step's mean over the epoch, or an evaluation.
LOGGED = (
    "loss label_loss learning_rate ground_truth_term dark_knowledge_term teacher_agreement "
    "teacher_confidence effective_sample_size eval_loss eval_error eval_perplexity "
    "eval_teacher_agreement eval_teacher_kl"
).split()


def make(job: Job, home: Path, cache: Path | None = None) -> None:
    """Do a job, or go on with it, and write its `results.json`.

    Args:
        job: whose networks to learn from or to put together stand finished under `home`.
        home: folder of the jobs' folders.
        cache: of its teacher's outputs, where other jobs have the same ones.
    """
    folder = home / job.name
    folder.mkdir(parents=True, exist_ok=True)
    found = _measure_ensemble(job, home) if job.members else _train(job, home, cache)
    identity = {
        "job": job.name,
        "code": code_sha256(),
        "arguments": job.arguments_sha256,
        "configuration": job.arguments,
        "teachers": [teacher.name for teacher in job.teachers],
        "members": [member.name for member in job.members],
        "hardware": hardware(),
        "versions": versions(),
    }
    write_json(folder / RESULTS, found | identity)


def _train(job: Job, home: Path, cache: Path | None) -> dict[str, Any]:
    """Train a job's network, unless it stands there; its results."""
    folder = home / job.name
    args, task = _begin(job, folder, cache)
    network, test = folder / NETWORK, _test(task)
    if (network / RECORD).is_file():  # killed before its results were written
        model = load_classifier(network)
        measured = _measured(test, [test.predict(model)])
    else:
        partial = folder / "checkpoints" / "finished"
        record = _train_network(job, home, args, task, partial)
        model = load_classifier(partial)
        measured = _measured(test, [test.predict(model)])
        record.metrics = _as_metrics(measured["test"])
        record.write(partial)
        os.replace(partial, network)  # whole or not at all
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    log = _compact_log(network)
    frozen = model.network.ends if job.arguments["share_ends"] else ()
    return {
        "network": job.arguments["network"]["name"],
        "parameters": {"all": _count(model), "trainable": _count(model) - sum(map(_count, frozen))},
        "train_loss": _last(log, "label_loss", "loss"),
        "validation": {test.metric: _last(log, f"eval_{test.metric}")},
        "log": log,
    } | measured


def _begin(
    job: Job, folder: Path, cache: Path | None
) -> tuple[BANTrainingArguments, dict[str, Any]]:
    """The arguments of a training, and its data and networks as `train_generations` takes them."""
    args = BANTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        teacher_cache=None if cache is None else str(cache),
        disable_tqdm=True,
        eval_strategy="epoch" if job.arguments["dataset"].get("validation", 1) else "no",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="epoch",
        report_to="none",
        **job.arguments["training"],
    )
    network = job.arguments["network"]
    splits = _load(job)
    if isinstance(splits, ImageSplits):
        args = ready_batches(args)
        task = image_task(splits, args, network["name"], network["args"])
    else:
        window = job.arguments["dataset"]["window"]
        args = text_arguments(splits, args, window)
        task = language_task(splits, args, network["name"], network["args"], window)
        task["entropy"] = splits.test_entropy
    return args, task


def _load(job: Job) -> ImageSplits | TextSplits:
    """The data of a job, read once in a process."""
    dataset = {k: v for k, v in job.arguments["dataset"].items() if k != "window"}
    return _load_once(job.arguments["task"], tuple(sorted(dataset.items())))


@functools.lru_cache(maxsize=2)
def _load_once(task: str, dataset: tuple[tuple[str, Any], ...]) -> ImageSplits | TextSplits:
    load = load_images if task == "image" else load_text
    return load(**dict(dataset))


def _train_network(
    job: Job, home: Path, args: BANTrainingArguments, task: Mapping[str, Any], folder: Path
) -> Record:
    """Train and save into a folder, which then lacks the record alone: here it is."""
    set_seed(args.seed)
    model = task["model_init"](0)
    init_sha256 = weights_digest(model)
    args = sequence_arguments(args, model)
    teacher = _teacher(job, home)
    if job.arguments["share_ends"]:
        share_ends(model, teacher)
    if job.arguments["task"] == "image":
        task["train_dataset"].seed = args.seed
    known = "train_dataset eval_dataset data_collator compute_metrics processing_class".split()
    trainer = BANTrainer(
        model, args, teacher=teacher, **{name: task[name] for name in known if name in task}
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    record = _record(job, home, trainer)
    trainer.add_callback(GenerationProgress(record.generation or 0, record.generation or 0))
    record.training |= train_to_end(trainer)
    record.seed = {"seed": args.seed, "init_sha256": init_sha256}
    record.seed["trained_sha256"] = weights_digest(trainer.model)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink()  # a pickle, with paths of this machine
    write_json(folder / LOG, trainer.state.log_history)
    record.data = {"source": _load(job).source, "train": describe_data(task["train_dataset"])}
    return record


def _teacher(job: Job, home: Path) -> Any:
    """The network that a job learns from; of several their ensemble; None for labels alone."""
    networks = [load_classifier(home / teacher.name / NETWORK) for teacher in job.teachers]
    if len(networks) < 2:
        return networks[0] if networks else None
    return BornAgainEnsemble.from_members(networks)


def _record(job: Job, home: Path, trainer: BANTrainer) -> Record:
    """What is known of a network before it is trained."""
    args, folders = trainer.args, [home / t.name / NETWORK for t in job.teachers]
    generation = 1 + max((Record.read(f).generation or 0 for f in folders), default=-1)
    record = Record("generation", job.name, generation, code=versions())
    if len(folders) == 1:  # of several teachers a record has no form to tell
        record.teacher = reference(folders[0], home / job.name / NETWORK)
    if folders:
        names = ("temperature", "teacher_weight", "label_weight")
        record.objective = {"name": args.objective} | {n: getattr(args, n) for n in names}
    record.architecture = architecture(trainer.model)
    if job.arguments["share_ends"]:
        record.architecture["shared_ends"] = True
    arguments = canonical_arguments(args)
    record.training = {"arguments": arguments, "arguments_sha256": sha256_of_json(arguments)}
    return record


def _measure_ensemble(job: Job, home: Path) -> dict[str, Any]:
    """The mean of the members' predictions on the test set."""
    _, task = _begin(job.members[0], home / job.name, None)
    test = _test(task)
    folders = [home / member.name / NETWORK for member in job.members]
    networks = [load_classifier(folder) for folder in folders]
    return {
        "network": " + ".join(member.arguments["network"]["name"] for member in job.members),
        "parameters": {"all": sum(map(_count, networks)), "trainable": 0},
        "train_loss": None,
        "validation": None,
        "log": [],
    } | _measured(test, [test.predict(network) for network in networks])


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _test(task: Mapping[str, Any]) -> ImageTest | TextTest:
    if "entropy" in task:
        return TextTest(task["test_dataset"], task["entropy"])
    return ImageTest(task["test_dataset"], batch_size=500)


def _measured(test: ImageTest | TextTest, members: Sequence[Any]) -> dict[str, Any]:
    """Metrics of one network, or of the mean of several, and what they did on each item."""
    metrics = {"test": test.metrics(members)}
    if isinstance(test, TextTest):
        together = torch.stack([member.logp for member in members])  # (K, N)
        logp = log_mean_exp(together, None)  # (N,)
        return metrics | {"outcomes": block_losses(-logp.numpy()), "labels": None}
    logits = members[0] if len(members) == 1 else mean_logits(members)  # (N, C)
    bins = [
        [int(n), confidence / n if n else None, correct / n if n else None]
        for n, confidence, correct in reliability_sums(logits, test.labels).tolist()
    ]
    return metrics | {
        "outcomes": {"predicted": pack_classes(logits.argmax(1).numpy())},
        "reliability": bins,
        "labels": pack_classes(test.labels.numpy()),
    }


def _as_metrics(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The test metrics as a record has them; lower is better of them all."""
    about = {"split": "test", "n": test["n"], "higher_is_better": False}
    return [{"name": name, "value": test[name]} | about for name in test if name != "n"]


def _compact_log(network: Path) -> list[dict[str, float]]:
    """The log of a training, a mapping an epoch, numbers to six digits."""
    epochs: dict[float, dict[str, float]] = {}
    for line in json.loads((network / LOG).read_text("utf-8")):
        known = {name: line[name] for name in LOGGED if line.get(name) is not None}
        kept = {name: float(f"{value:.6g}") for name, value in known.items()}
        if kept:
            epochs.setdefault(line["epoch"], {"epoch": line["epoch"]}).update(kept)
    return [epochs[epoch] for epoch in sorted(epochs)]


def _last(log: Sequence[Mapping[str, float]], *names: str) -> float | None:
    """The last value of the first of these names that the log has."""
    values = (line[name] for name in names for line in reversed(log) if name in line)
    return next(values, None)
