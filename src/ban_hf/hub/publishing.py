"""A family on the Hub.

A repository for each generation, `ns/family-gen0`, `ns/family-gen1` and so on, each published after
its teacher and naming it by its commit; and one for the ensemble, `ns/family`, published last: a
family that has it is complete. What is published is the record, made over for others to read (no
path of this machine, teachers by repository and commit), the card with its picture, and the files
that a model is loaded from, nothing else.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ban_hf.errors import BANError, PublishError, RecordError
from ban_hf.hub.cards import card_files
from ban_hf.hub.client import clean_token, persistently
from ban_hf.hub.location import LOCAL_GENERATION, HubCommit, LocalFolder, Place, locate, look
from ban_hf.hub.repository import Content, contents_of, is_private, prepare, publication, publish
from ban_hf.hub.verification import Entry, ancestry, check_file, check_model
from ban_hf.lineage.record import LOG, RECORD, Record, as_json, finished_generations, read_json
from ban_hf.lineage.redaction import for_others

logger = logging.getLogger(__name__)

Contents = dict[str, Content]  # of a model, by the names of its files


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
    for entry, contents in generations:
        teacher = str(commits[-1]) if commits else None
        name = generation_repository(repo_id, entry.record.generation)
        commits.append(_push_generation(entry, contents, name, teacher, **options))
    if ensemble is not None:
        commits.append(_push_ensemble(*ensemble, repo_id, commits[-1], **options))
    else:
        logger.warning("%s has no ensemble, so that there is nothing for %s.", output_dir, repo_id)
    return commits


def _family(
    output_dir: Path,
) -> tuple[list[tuple[Entry, Contents]], tuple[Entry, Contents] | None]:
    """The own generations and the ensemble of a directory, each file held against its record.

    Raises:
        ValueError: if there is no generation, or one that no run has noted there.
        PublishError: if the ensemble has another generation for a member.
        TamperedFileError: see `push_family`.
    """
    generations = [Entry.at(LocalFolder(f)) for f in finished_generations(output_dir)]
    if not generations:
        raise BANError(f"output_dir={output_dir} holds no finished generation to publish.")
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
    pairs = [(entry, _contents(entry)) for entry in generations]
    last = (ensemble, _contents(ensemble)) if ensemble else None
    note = read_json(output_dir / RECORD) if (output_dir / RECORD).is_file() else {}
    noted = {generation["lineage_sha256"] for generation in note.get("generations", [])}
    if strays := [str(e.place) for e in generations if e.lineage_sha256 not in noted]:
        raise BANError(
            f"{', '.join(strays)}: not trained by a run of {output_dir}, so that somebody may have "
            "published it already. Nothing was sent. (push_generation publishes a single one.)"
        )
    return _own(pairs, note["run"].get("teacher") or {}), last


def _own(
    pairs: list[tuple[Entry, Contents]], teacher: dict[str, str]
) -> list[tuple[Entry, Contents]]:
    """What of a directory is to be published: its own generations, less what is published already.

    A family that goes on from a generation on the Hub begins with that, as it was pulled, and one
    that goes on from a folder with what stood there: generations that were trained at home, which
    are published as its own.

    Raises:
        PublishError: if what stood there had been pulled itself, and is somebody's already.
    """
    if teacher and not LOCAL_GENERATION.fullmatch(teacher["teacher"]):
        return pairs[1:]
    for entry, _ in pairs:
        if not any(file["path"] == LOG for file in entry.record.files):  # it is not published
            raise PublishError(
                f"{entry.place} was pulled from where somebody published it. Nothing was sent: "
                "publish its students one by one, by push_generation, the first with "
                "teacher='ns/name@commit'."
            )
    return pairs


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
        raise BANError(f"{folder} holds an ensemble: publish it with its family, push_family.")
    options: dict[str, Any] = {"private": private, "license": license, "token": token}
    return _push_generation(entry, _contents(entry), repo_id, teacher, **options)


def _push_generation(
    entry: Entry, contents: Contents, repo_id: str, teacher: str | None, **options: Any
) -> HubCommit:
    chain = _teachers(entry, repo_id, teacher, options["token"])
    record = for_others(entry.record, contents)
    record.teacher = _reference(chain[-1]) if chain else None
    return _publish(entry, record, chain, contents, repo_id, **options)


def _push_ensemble(
    entry: Entry, contents: Contents, repo_id: str, last: HubCommit, **options: Any
) -> HubCommit:
    """Publish the ensemble, whose members are the last generation and some of its ancestors."""
    chain = ancestry(last)
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
    contents: Contents,
    repo_id: str,
    *,
    private: bool | None,
    license: str | None,
    token: str | None,
    replaces: Callable[[Path], bool] = lambda standing: False,
) -> HubCommit:
    """Publish the files of a place with the record as others may read it, and its card."""
    files = {
        **contents,
        RECORD: as_json(asdict(record)),
        **card_files(entry.place, record, chain, repo_id, license),
    }
    commit = publish(
        repo_id,
        files,
        title=f"{record.name} of {record.family}",
        private=_privacy(private, chain[-1].place if chain else None),
        token=token,
        replaces=replaces,
    )
    return HubCommit(repo_id, commit, token)


def prepare_family(
    repo_id: str,
    generations: Sequence[int],
    before: Sequence[str],
    private: bool | None,
    token: str | None,
) -> None:
    """Hold, before hours of training, that it can be published; make the first repository.

    Args:
        repo_id: see `push_family`.
        generations: that are to be trained.
        before: the repositories of the generations before them; where there are none of this
            family, the family's own name is looked at, too.
        private: see `push_family`.
        token: see `push_family`.

    Raises:
        PublishError: if one of its repositories holds anything, or should be private and is not.
        HubError: if the Hub cannot be reached, or refuses.
    """
    names = [generation_repository(repo_id, generation) for generation in generations]
    is_new = not any(name.startswith(f"{repo_id}-gen") for name in before)
    for name in [*([repo_id] if is_new else []), *names]:
        held = contents_of(name, token)
        if held:
            what = "is published already" if RECORD in held else f"holds {', '.join(sorted(held))}"
            raise PublishError(
                f"{name} {what}, and this run would train another one. Nothing was changed: give "
                "another hub_model_id, or delete it."
            )
    if private is None and any(is_private(name, token) for name in before):
        private = True  # as what comes of it is going to be
    prepare(names[0], private, token)


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


def _contents(entry: Entry) -> Contents:
    """The files of a folder that are published, each as its record names it: a model, whole.

    Raises:
        LineageError: if one is not as it is named, or they are no model that can be verified.
    """
    files = [file for file in entry.record.files if file["path"] != LOG]
    contents: Contents = {f["path"]: check_file(entry.place, f) for f in files}
    check_model(entry, set(contents))
    return contents


def _teachers(entry: Entry, repo_id: str, teacher: str | None, token: str | None) -> list[Entry]:
    """The published generations before this one, the teacher last."""
    named = entry.record.teacher
    if named is None or "repo_id" in named:  # somebody else's family goes on
        recorded = HubCommit(named["repo_id"], named["revision"], token) if named else None
        if teacher is not None and teacher != str(recorded):
            raise BANError(f"teacher={teacher!r}: {entry.place} records {recorded}: leave it out.")
        return ancestry(recorded) if recorded else []
    place = locate(teacher, token=token) if teacher else _teacher_by_name(entry, repo_id, token)
    if not isinstance(place, HubCommit):
        raise BANError(f"teacher={teacher!r} is a folder: say where it is published.")
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
