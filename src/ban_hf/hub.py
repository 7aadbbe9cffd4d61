"""A family on the Hub: published, pulled, its cards.

A repository for each generation, `ns/family-gen0`, `ns/family-gen1` and so on, each published after
its teacher and naming it by its commit; and one for the ensemble, `ns/family`, published last: a
family that has it is complete. What is published is the record, made over for others to read (no
path of this machine, teachers by repository and commit), the card with its picture, and the files
that a model is loaded from, nothing else.
"""

import logging
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi

from ban_hf.cards import CARD, PICTURE, card_files
from ban_hf.errors import PublishError
from ban_hf.lineage import (
    LOG,
    RECORD,
    Lineage,
    Record,
    as_json,
    finished_generations,
    sha256_of_json,
)
from ban_hf.network import persistently
from ban_hf.places import HubCommit, LocalFolder, Place, locate
from ban_hf.provenance import Entry, ancestry, check_file, load_lineage, walk
from ban_hf.repository import Content, prepare, publication, publish
from ban_hf.results import data_name

logger = logging.getLogger(__name__)

#: What a model, its processor or tokenizer is loaded from; a pickle is not among it.
PUBLISHED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")


def push_family(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    license: str | None = None,
    token: str | None = None,
) -> list[HubCommit]:
    """Publish what `train_generations` left under a directory: each generation, then the ensemble.

    What is published already is left as it is, so that pushing again completes what is missing.

    Args:
        output_dir: of the family.
        repo_id: `"ns/family"`, or `"family"` under your own name: the ensemble's repository;
            generation k goes to `"ns/family-genk"`.
        private: True for repositories that only you can read: held before any weights are sent.
        license: of the weights, as the Hub writes it (`"apache-2.0"`), for the cards.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The commits, in the order of publication; the ensemble's last, if there is one.

    Raises:
        TamperedFileError: if a file is not the one that its record names; nothing was sent.
        PublishError: if a repository holds something else, or is public and should not be.
        HubError: if the Hub cannot be reached, or refuses.
    """
    output_dir, repo_id = Path(output_dir), full_name(repo_id, token)
    folders = finished_generations(output_dir)
    if not folders:
        raise ValueError(f"output_dir={output_dir} holds no finished generation to publish.")
    ensemble = output_dir / "ensemble"
    has_ensemble = (ensemble / RECORD).is_file()
    for folder in [*folders, *([ensemble] if has_ensemble else [])]:
        _contents(Entry.at(LocalFolder(folder)))
    options: dict[str, Any] = {"private": private, "license": license, "token": token}
    commits: list[HubCommit] = []
    for folder in folders if _number(folders[0]) == 0 else folders[1:]:  # the first was pulled
        teacher = str(commits[-1]) if commits else None
        name = generation_repository(repo_id, _number(folder))
        commits.append(push_generation(folder, name, teacher=teacher, **options))
    if has_ensemble:
        commits.append(_push_ensemble(ensemble, repo_id, commits[-1], **options))
    else:
        logger.warning("%s has no ensemble, so that there is nothing for %s.", output_dir, repo_id)
    return commits


def push_generation(
    folder: str | Path,
    repo_id: str,
    *,
    teacher: str | None = None,
    private: bool | None = None,
    license: str | None = None,
    token: str | None = None,
) -> HubCommit:
    """Publish one generation, whose teacher is published.

    Args:
        folder: of the generation.
        repo_id: `"ns/family-gen2"`.
        teacher: where its teacher is published, `"ns/name@commit"`; by default the repository
            that is called as this one, with the number before.
        private: see `push_family`.
        license: see `push_family`.
        token: see `push_family`.

    Returns:
        The commit.

    Raises:
        PublishError: if the teacher is not published, or what stands there is another network than
            taught this one; and see `push_family`.
    """
    entry, repo_id = Entry.at(LocalFolder(Path(folder))), full_name(repo_id, token)
    if entry.record.kind != "generation":
        raise ValueError(f"{folder} holds an ensemble: publish it with its family, push_family.")
    contents = _contents(entry)
    chain = _teachers(entry, repo_id, teacher, token)
    record = _for_others(entry.record, contents)
    record.teacher = _reference(chain[-1]) if chain else None
    title = f"generation {record.generation} of {record.family}"
    files = {**contents, RECORD: as_json(asdict(record))}
    files |= card_files(entry.place, record, chain, repo_id, license)
    commit = publish(repo_id, files, title=title, private=private, token=token)
    return HubCommit(repo_id, commit, token)


def _push_ensemble(
    folder: Path,
    repo_id: str,
    last: HubCommit,
    *,
    private: bool | None,
    license: str | None,
    token: str | None,
) -> HubCommit:
    """Publish the ensemble, whose members are the last generation and some of its ancestors."""
    entry, chain = Entry.at(LocalFolder(folder)), ancestry(last)
    contents = _contents(entry)
    published = {e.record.generation: e for e in chain}
    for member in entry.record.members:
        if published[member["generation"]].record.weights_sha256 != member["weights_sha256"]:
            raise PublishError(
                f"{folder} has another generation {member['generation']} for a member than "
                f"{published[member['generation']].place} is: train it again."
            )
    record = _for_others(entry.record, contents)
    record.members = [_reference(published[m["generation"]]) for m in entry.record.members]
    hashes = {e.lineage_sha256 for e in chain}

    def is_of_fewer(standing: Path) -> bool:
        theirs = Record.read(standing.parent)
        known = all(member["lineage_sha256"] in hashes for member in theirs.members)
        return (theirs.kind, theirs.family) == (record.kind, record.family) and known

    title = f"ensemble of {record.family}"
    files = {**contents, RECORD: as_json(asdict(record))}
    files |= card_files(entry.place, record, chain, repo_id, license)
    commit = publish(
        repo_id, files, title=title, private=private, token=token, replaces=is_of_fewer
    )
    return HubCommit(repo_id, commit, token)


def prepare_family(repo_id: str, generation: int, private: bool | None, token: str | None) -> None:
    """Hold, before hours of training, that the first generation can be published.

    Makes its repository.

    Raises:
        PublishError: if it holds anything, or should be private and is not.
        HubError: if the Hub cannot be reached, or refuses.
    """
    name = generation_repository(repo_id, generation)
    if RECORD in prepare(name, private, token).files:
        raise PublishError(
            f"{name} is published already, and this run would train another generation "
            f"{generation}. Nothing was changed: give another hub_model_id, or delete it."
        )


def pull(where: str | Path, output_dir: str | Path, *, revision: str | None = None) -> Lineage:
    """Download a family, or one generation, into the folders that `train_generations` writes.

    Every file is held against its record. A folder that is there already stays, if it is the same.

    Args:
        where: `"ns/family"` for all generations and the ensemble, `"ns/family-gen2"` for that one
            alone; with `@revision` if wanted.
        output_dir: to hold `generation-0` and so on, and `ensemble`.
        revision: a branch, a tag or a commit; by default `main`.

    Returns:
        The lineage of what was pulled.

    Raises:
        LineageError: if it is not what its records say; a folder stands whole or not at all.
        ValueError: if a folder is in the way.
    """
    output_dir = Path(output_dir)
    chain, ensemble = walk(where, revision)
    entries = [*chain, ensemble] if ensemble else chain[-1:]
    for entry in entries:
        _pull(entry, output_dir / _folder_name(entry.record))
    return load_lineage(output_dir if ensemble else output_dir / _folder_name(entry.record))


def _pull(entry: Entry, folder: Path) -> None:
    """Download a generation or an ensemble, whole or not at all."""
    if folder.exists():
        if (folder / RECORD).is_file() and Entry.at(LocalFolder(folder)).lineage_sha256 == (
            entry.lineage_sha256
        ):
            return
        raise ValueError(f"{folder} is in the way of {entry.place}: move it, or pull elsewhere.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as partial:
        files = {file["path"]: check_file(entry.place, file) for file in entry.record.files}
        beside = {RECORD, CARD, PICTURE} & set(entry.place.names())
        files |= {name: entry.place.fetch(name) for name in beside}
        for name, source in files.items():
            target = Path(partial, folder.name, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        os.replace(Path(partial, folder.name), folder)


def full_name(repo_id: str, token: str | None = None) -> str:
    """`"ns/name"`; a bare name is the user's."""
    if "/" in repo_id:
        return repo_id
    user = persistently("your name", lambda: HfApi(token=token).whoami()["name"])
    return f"{user}/{repo_id}"


def generation_repository(repo_id: str, generation: int) -> str:
    """The repository of a generation of a family."""
    return f"{repo_id}-gen{generation}"


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("generation-"))


def _folder_name(record: Record) -> str:
    return "ensemble" if record.kind == "ensemble" else f"generation-{record.generation}"


def _contents(entry: Entry) -> dict[str, Content]:
    """The files of a folder that are published, each as its record names it."""
    return {
        file["path"]: check_file(entry.place, file)
        for file in entry.record.files
        if file["path"].endswith(PUBLISHED) and file["path"] != LOG
    }


def _teachers(entry: Entry, repo_id: str, teacher: str | None, token: str | None) -> list[Entry]:
    """The published generations before this one, the teacher last."""
    named = entry.record.teacher
    if named is None:
        return []
    if "repo_id" in named:  # somebody else's family goes on
        place: Place = HubCommit(named["repo_id"], named["revision"], token)
    elif teacher is not None:
        place = locate(teacher, token=token)
    else:
        place = _teacher_by_name(entry.record, repo_id, token)
    chain = ancestry(place)
    if chain[-1].record.weights_sha256 != named["weights_sha256"]:
        raise PublishError(
            f"{place} is another network than the generation {named['generation']} that taught "
            f"{entry.place}. Nothing was sent: name the right one by teacher='ns/name@commit'."
        )
    return chain


def _teacher_by_name(record: Record, repo_id: str, token: str | None) -> HubCommit:
    family = repo_id.removesuffix(f"-gen{record.generation}")
    if family == repo_id:
        raise PublishError(
            f"{repo_id} does not end in -gen{record.generation}, so that its teacher's name is "
            "unknown: publish the family (push_family), or say teacher='ns/name@commit'."
        )
    name = generation_repository(family, int(record.generation or 0) - 1)
    return HubCommit(name, publication(name, token), token)


def _reference(entry: Entry) -> dict[str, Any]:
    """How a published record names a teacher or member."""
    repo_id, _, revision = str(entry.place).partition("@")
    return {
        "repo_id": repo_id,
        "revision": revision,
        "generation": entry.record.generation,
        "lineage_sha256": entry.lineage_sha256,
        "weights_sha256": entry.record.weights_sha256,
    }


def _for_others(record: Record, contents: dict[str, Content]) -> Record:
    """A record without what is nobody else's: paths of this machine, and files that stay here."""
    training = _without_paths(record.training)
    if "arguments" in training:
        training["arguments_sha256"] = sha256_of_json(training["arguments"])
    data = _without_paths(record.data)
    if (source := data.get("source", data)).get("id"):
        source["id"] = data_name(asdict(record))  # of a relative path, too, the last part
    files = [file for file in record.files if file["path"] in contents]
    return replace(record, data=data, training=training, files=files)


def _without_paths(value: Any) -> Any:
    """Plain data, of every absolute path in it only the last part."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() or value.startswith("~"):
            return kind(value).name
    return value
