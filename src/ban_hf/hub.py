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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ban_hf.cards import CARD, PICTURE, card_files
from ban_hf.errors import PublishError, RecordError
from ban_hf.lineage import LOG, RECORD, Lineage, Record, as_json, finished_generations
from ban_hf.network import clean_token, persistently
from ban_hf.places import HubCommit, LocalFolder, Place, locate, look
from ban_hf.provenance import Entry, ancestry, check_file, check_files, load_lineage, walk
from ban_hf.public_record import for_others
from ban_hf.repository import Content, contents_of, prepare, publication, publish

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
        private: True for repositories that only you can read: held before any weights are sent;
            False for public ones; by default as the teacher is, if that is private, or else as
            your account makes them.
        license: of the weights, as the Hub writes it (`"apache-2.0"`), for the cards.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The commits, in the order of publication; the ensemble's last, if there is one.

    Raises:
        TamperedFileError: if a file is not the one that its record names; nothing was sent.
        PublishError: if a repository holds something else, or is public and should not be.
        HubError: if the Hub cannot be reached, or refuses.
    """
    output_dir, token = Path(output_dir), clean_token(token)
    repo_id = full_name(repo_id, token)
    generations, ensemble = _family(output_dir)
    options: dict[str, Any] = {"private": private, "license": license, "token": token}
    commits: list[HubCommit] = []
    for entry in generations:
        teacher = str(commits[-1]) if commits else None
        name = generation_repository(repo_id, entry.record.generation)
        commits.append(push_generation(str(entry.place), name, teacher=teacher, **options))
    if ensemble is not None:
        commits.append(_push_ensemble(ensemble, repo_id, commits[-1], **options))
    else:
        logger.warning("%s has no ensemble, so that there is nothing for %s.", output_dir, repo_id)
    return commits


def _family(output_dir: Path) -> tuple[list[Entry], Entry | None]:
    """The own generations and the ensemble of a directory, each file held against its record.

    Raises:
        ValueError: if there is no generation that was trained here.
        PublishError: if the ensemble has another generation for a member.
        TamperedFileError: see `push_family`.
    """
    generations = [Entry.at(LocalFolder(f)) for f in finished_generations(output_dir)]
    if not generations:
        raise ValueError(f"output_dir={output_dir} holds no finished generation to publish.")
    has_ensemble = (output_dir / "ensemble" / RECORD).is_file()
    ensemble = Entry.at(LocalFolder(output_dir / "ensemble")) if has_ensemble else None
    known = {e.record.generation: e.record.weights_sha256 for e in generations}
    for member in ensemble.record.members if ensemble else []:
        if known.get(member["generation"]) != member["weights_sha256"]:
            raise PublishError(
                f"{output_dir / 'ensemble'} has another generation {member['generation']} for a "
                "member than stands beside it. Nothing was sent: move the ensemble away, and give "
                "the run's command again to make it anew."
            )
    for entry in [*generations, *([ensemble] if ensemble else [])]:
        _contents(entry)
    # A family that goes on from somebody's generation begins with that, as it was pulled.
    elsewhere = ["repo_id" in (e.record.teacher or {}) for e in generations]
    own = generations[1:] if elsewhere[0] or any(elsewhere[1:2]) else generations
    members = ensemble.record.members if ensemble else []
    if not own or any(elsewhere[2:]) or any("repo_id" in member for member in members):
        raise ValueError(
            f"output_dir={output_dir} was pulled from the Hub, where it is published. (A single "
            "generation of it is published again by push_generation.)"
        )
    return own, ensemble


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
    token = clean_token(token)
    entry, repo_id = Entry.at(LocalFolder(Path(folder))), full_name(repo_id, token)
    if entry.record.kind != "generation":
        raise ValueError(f"{folder} holds an ensemble: publish it with its family, push_family.")
    contents = _contents(entry)
    chain = _teachers(entry, repo_id, teacher, token)
    record = for_others(entry.record, contents)
    record.teacher = _reference(chain[-1]) if chain else None
    options: dict[str, Any] = {"private": private, "license": license, "token": token}
    return _publish(entry, record, chain, contents, repo_id, **options)


def _push_ensemble(entry: Entry, repo_id: str, last: HubCommit, **options: Any) -> HubCommit:
    """Publish the ensemble, whose members are the last generation and some of its ancestors."""
    chain, contents = ancestry(last), _contents(entry)
    published = {e.record.generation: e for e in chain}
    record = for_others(entry.record, contents)
    record.members = [_reference(published[m["generation"]]) for m in entry.record.members]
    hashes = {e.lineage_sha256 for e in chain}

    def is_of_fewer(standing: Path) -> bool:
        try:
            theirs = Entry.at(LocalFolder(standing.parent)).record
        except RecordError:
            return False
        known = all(member["lineage_sha256"] in hashes for member in theirs.members)
        return (theirs.kind, theirs.family) == (record.kind, record.family) and known

    return _publish(entry, record, chain, contents, repo_id, replaces=is_of_fewer, **options)


def _publish(
    entry: Entry,
    record: Record,
    chain: list[Entry],
    contents: dict[str, Content],
    repo_id: str,
    *,
    private: bool | None,
    license: str | None,
    token: str | None,
    replaces: Callable[[Path], bool] = lambda standing: False,
) -> HubCommit:
    """Publish the files of a place with the record as others may read it, and its card."""
    what = "ensemble" if record.generation is None else f"generation {record.generation}"
    files = {
        **contents,
        RECORD: as_json(asdict(record)),
        **card_files(entry.place, record, chain, repo_id, license),
    }
    commit = publish(
        repo_id,
        files,
        title=f"{what} of {record.family}",
        private=_privacy(private, chain[-1].place if chain else None),
        token=token,
        replaces=replaces,
    )
    return HubCommit(repo_id, commit, token)


def prepare_family(
    repo_id: str,
    generations: Sequence[int],
    is_new: bool,
    teacher: str | None,
    private: bool | None,
    token: str | None,
) -> None:
    """Hold, before hours of training, that it can be published; make the first repository.

    Args:
        repo_id: see `push_family`.
        generations: that are to be trained.
        is_new: whether they are the first of their family.
        teacher: of the first, `"ns/name@commit"`, where it is somebody's.
        private: see `push_family`.
        token: see `push_family`.

    Raises:
        PublishError: if one of its repositories holds anything, or should be private and is not.
        HubError: if the Hub cannot be reached, or refuses.
    """
    names = [generation_repository(repo_id, generation) for generation in generations]
    for name in [*([repo_id] if is_new else []), *names]:
        held = contents_of(name, token)
        if held:
            what = "is published already" if RECORD in held else f"holds {', '.join(sorted(held))}"
            raise PublishError(
                f"{name} {what}, and this run would train another one. Nothing was changed: give "
                "another hub_model_id, or delete it."
            )
    place = locate(teacher, token=token) if teacher and is_new else None
    prepare(names[0], _privacy(private, place), token)


def pull(
    where: str | Path,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Lineage:
    """Download a family, or one generation, into the folders that `train_generations` writes.

    Every file is held against its record. A folder that is there already stays, if it is the same.

    Args:
        where: `"ns/family"` for all generations and the ensemble, `"ns/family-gen2"` for that one
            alone; with `@revision` if wanted.
        output_dir: to hold `generation-0` and so on, and `ensemble`.
        revision: a branch, a tag or a commit; by default `main`.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The lineage of what was pulled.

    Raises:
        LineageError: if it is not what its records say; a folder stands whole or not at all.
        ValueError: if a folder is in the way.
    """
    output_dir = Path(output_dir)
    chain, ensemble = walk(where, revision, clean_token(token))
    entries = [*chain, ensemble] if ensemble else chain[-1:]
    for entry in entries:
        _pull(entry, output_dir / _folder_name(entry.record))
    return load_lineage(output_dir if ensemble else output_dir / _folder_name(entry.record))


def _pull(entry: Entry, folder: Path) -> None:
    """Download a generation or an ensemble, whole or not at all."""
    if folder.exists():
        standing = Entry.at(LocalFolder(folder)) if (folder / RECORD).is_file() else None
        if standing is not None and standing.lineage_sha256 == entry.lineage_sha256:
            check_files(standing)
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


def generation_repository(repo_id: str, generation: int | None) -> str:
    """The repository of a generation of a family."""
    return f"{repo_id}-gen{generation}"


def _privacy(private: bool | None, teacher: Place | None) -> bool | None:
    """What was asked for; else private where the teacher is, whose results are in the card."""
    if private is not None or not isinstance(teacher, HubCommit):
        return private
    if look(teacher.repo_id, token=teacher.token).private:
        logger.info("Private, as %s is: private=False would make it public.", teacher.repo_id)
        return True
    return None


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
    if named is None or "repo_id" in named:  # somebody else's family goes on
        recorded = HubCommit(named["repo_id"], named["revision"], token) if named else None
        if teacher is not None and teacher != str(recorded):
            raise ValueError(
                f"teacher={teacher!r}: {entry.place} records {recorded}: leave it out."
            )
        return ancestry(recorded) if recorded else []
    place = locate(teacher, token=token) if teacher else _teacher_by_name(entry, repo_id, token)
    if not isinstance(place, HubCommit):
        raise ValueError(f"teacher={teacher!r} is a folder: say where it is published.")
    chain = ancestry(place)
    if chain[-1].record.weights_sha256 != named["weights_sha256"]:
        raise PublishError(
            f"{place} is another network than the generation {named['generation']} that taught "
            f"{entry.place}. Nothing was sent: name the right one by teacher='ns/name@commit'."
        )
    return chain


def _teacher_by_name(entry: Entry, repo_id: str, token: str | None) -> HubCommit:
    record = entry.record
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
