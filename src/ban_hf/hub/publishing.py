"""Publish a family on the Hub.

Each generation has a repository of its own, `ns/family-gen0`, `ns/family-gen1` and so on. It is
published after its teachers and names them by their commits. The ensemble's repository,
`ns/family`, is published last: a family that has it is complete. Published are the record, redacted
(no path of this machine, teachers by repository and commit), the card with its picture, and the
files that a model is loaded from, nothing else.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelCard
from msgspec.structs import replace

from ban_hf.errors import BANError, PublishError, RecordError
from ban_hf.hub.client import clean_token
from ban_hf.hub.location import LOCAL_GENERATION, HubRevision, LocalPath, Location, resolve
from ban_hf.hub.repository import (
    Content,
    contents_of,
    create_or_get,
    full_name,
    generation_repository,
    is_private,
    publish,
    published_commit,
)
from ban_hf.hub.verification import Entry, ancestry, check_file, check_model, walk
from ban_hf.lineage.family import finished_generations
from ban_hf.lineage.family_results import results_of_records
from ban_hf.lineage.files import as_json, read_json
from ban_hf.lineage.record import CARD, LOG, PICTURE, RECORD, Record, Reference
from ban_hf.lineage.results import Results
from ban_hf.reports.model_card import render_card
from ban_hf.reports.reading import read_results
from ban_hf.reports.statistics import is_measured
from ban_hf.tasks.catalog import CATALOG

logger = logging.getLogger(__name__)

Contents = dict[str, Content]  # of a model, by the names of its files
OWN_TYPES = ("ban_", "born_again_")  # how the model types of ban_hf's classes begin
#: Pipeline tags by what the name of a model's class contains.
TAGS_OF_CLASSES = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}


def push_family(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    license: str | None = None,
    token: str | None = None,
) -> list[HubRevision]:
    """Publish what `train_generations` left in a directory: each generation, then the ensemble.

    What is published already stays as it is, so pushing again completes what is missing.

    Args:
        output_dir: of the family.
        repo_id: `"ns/family"`, or `"family"` under your own name: the ensemble's repository;
            generation k goes to `"ns/family-genk"`.
        private: True for repositories that only you can read: checked before any weights are sent;
            False for public ones; by default private if a teacher is, otherwise as your account
            makes them.
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
    commits: dict[str, HubRevision] = {}  # by the hashes of the local records
    for entry, contents in generations:
        published = [commits.get(t.lineage_sha256) for t in entry.record.teachers]
        teachers = [str(commit) if commit else None for commit in published]
        name = generation_repository(repo_id, entry.record.generation)
        commit = _push_generation(entry, contents, name, teachers, **options)
        commits[entry.lineage_sha256] = commit
    if ensemble is None:
        logger.warning("%s has no ensemble, so nothing goes to %s.", output_dir, repo_id)
        return list(commits.values())
    return [*commits.values(), _push_ensemble(*ensemble, repo_id, commit, **options)]


def _family(
    output_dir: Path,
) -> tuple[list[tuple[Entry, Contents]], tuple[Entry, Contents] | None]:
    """The own generations and the ensemble of a directory, each file checked against its record.

    Raises:
        BANError: if there is no generation, or one that no run has noted there.
        PublishError: if the ensemble has another generation for a member.
        TamperedFileError: see `push_family`.
    """
    generations = [Entry.at(LocalPath(f)) for f in finished_generations(output_dir)]
    if not generations:
        raise BANError(f"output_dir={output_dir} holds no finished generation to publish.")
    has_ensemble = (output_dir / "ensemble" / RECORD).is_file()
    ensemble = Entry.at(LocalPath(output_dir / "ensemble")) if has_ensemble else None
    known = {e.record.generation: e.record.weights_sha256 for e in generations}
    for member in ensemble.record.members if ensemble else []:
        if known.get(member.generation) != member.weights_sha256:
            raise PublishError(
                f"{output_dir / 'ensemble'} has another generation {member.generation} for a "
                "member than the one beside it. Nothing was sent: move the ensemble away, and give "
                "the run's command again to make a new one."
            )
    pairs = [(entry, _contents(entry)) for entry in generations]
    last = (ensemble, _contents(ensemble)) if ensemble else None
    note = read_json(output_dir / RECORD) if (output_dir / RECORD).is_file() else {}
    noted = {generation["lineage_sha256"] for generation in note.get("generations", [])}
    if strays := [str(e.place) for e in generations if e.lineage_sha256 not in noted]:
        raise BANError(
            f"{', '.join(strays)}: not trained by a run of {output_dir}, so others may have "
            "published it already. Nothing was sent. (push_generation publishes a single one.)"
        )
    return _own(pairs, note["run"].get("teacher") or {}), last


def _own(
    pairs: list[tuple[Entry, Contents]], teacher: dict[str, str]
) -> list[tuple[Entry, Contents]]:
    """The generations of a directory that are published as its own.

    A family that continues a generation of the Hub begins with that one, which is published
    already. One that continues a folder begins with copies of generations that were trained here,
    and publishes them.

    Raises:
        PublishError: if a copied generation was pulled itself, so it is published already.
    """
    if teacher and not LOCAL_GENERATION.fullmatch(teacher["teacher"]):
        return pairs[1:]
    for entry, _ in pairs:
        if not any(file.path == LOG for file in entry.record.files):  # it is not published
            raise PublishError(
                f"{entry.place} was pulled, so it is published already. Nothing was sent: "
                "publish its students one by one, by push_generation, the first with "
                "teacher='ns/name@commit'."
            )
    return pairs


def push_generation(
    folder: str | Path,
    repo_id: str,
    *,
    teacher: str | Sequence[str] | None = None,
    private: bool | None = None,
    license: str | None = None,
    token: str | None = None,
) -> HubRevision:
    """Publish one generation, whose teachers are published.

    Args:
        folder: of the generation.
        repo_id: `"ns/family-gen2"`.
        teacher: where its teacher is published, `"ns/name@commit"`; of several teachers a list, in
            the order of its record. By default the repository of this name with the number
            before, for a single teacher.
        private: see `push_family`.
        license: see `push_family`.
        token: see `push_family`.

    Returns:
        The commit.

    Raises:
        PublishError: if a teacher is not published, or its repository holds another network than
            taught this one; and see `push_family`.
    """
    token = clean_token(token)
    entry, repo_id = Entry.at(LocalPath(Path(folder))), full_name(repo_id, token)
    if entry.record.kind != "generation":
        raise BANError(f"{folder} holds an ensemble: publish it with its family, push_family.")
    count = len(entry.record.teachers)
    given = [teacher] if isinstance(teacher, str) else list(teacher or [])
    if given and len(given) != count:
        raise BANError(f"teacher={teacher!r}: {folder} records {count} teachers: name each once.")
    options: dict[str, Any] = {"private": private, "license": license, "token": token}
    return _push_generation(entry, _contents(entry), repo_id, given or [None] * count, **options)


def _push_generation(
    entry: Entry,
    contents: Contents,
    repo_id: str,
    teachers: Sequence[str | None],
    **options: Any,
) -> HubRevision:
    places = [
        _published_teacher(entry, named, repo_id, given, options["token"])
        for named, given in zip(entry.record.teachers, teachers, strict=True)
    ]
    before = ancestry(*places)
    entries = {published.place: published for published in before}
    for named, place in zip(entry.record.teachers, places, strict=True):
        if entries[place].record.weights_sha256 != named.weights_sha256:
            raise PublishError(
                f"{place} is another network than the generation {named.generation} that taught "
                f"{entry.place}. Nothing was sent: name the right one by teacher='ns/name@commit'."
            )
    record = replace(
        entry.record.redacted(contents), teachers=tuple(entries[p].reference() for p in places)
    )
    return _publish(entry, record, before, contents, repo_id, places, **options)


def _published_teacher(
    entry: Entry, named: Reference, repo_id: str, given: str | None, token: str | None
) -> HubRevision:
    """Where a teacher is published: as recorded, as given, or by the name of its student's."""
    if named.repo_id is not None and named.revision is not None:  # of another family
        recorded = HubRevision(named.repo_id, named.revision, token)
        if given not in (None, str(recorded)):
            raise BANError(f"teacher={given!r}: {entry.place} records {recorded}: leave it out.")
        return recorded
    if given is not None:
        place = resolve(given, token=token)
        if not isinstance(place, HubRevision):
            raise BANError(f"teacher={given!r} is a folder: say where it is published.")
        return place
    if len(entry.record.teachers) > 1:
        raise PublishError(
            f"{entry.place} has several teachers: say where each is published, by "
            "teacher=['ns/name@commit', ...]."
        )
    family = repo_id.removesuffix(f"-gen{entry.record.generation}")
    if family == repo_id:
        raise PublishError(
            f"{repo_id} does not end in -gen{entry.record.generation}, so its teacher's name is "
            "unknown: publish the family (push_family), or say teacher='ns/name@commit'."
        )
    name = generation_repository(family, named.generation)
    return HubRevision(name, published_commit(name, token), token)


def _push_ensemble(
    entry: Entry, contents: Contents, repo_id: str, last: HubRevision, **options: Any
) -> HubRevision:
    """Publish the ensemble, whose members are the last generation and some of its teachers."""
    before = ancestry(last)
    published = {e.record.generation: e for e in before}
    members = tuple(published[m.generation].reference() for m in entry.record.members)
    record = replace(entry.record.redacted(contents), members=members)
    hashes = {e.lineage_sha256 for e in before}

    def is_of_fewer(existing: Path) -> bool:
        try:
            theirs = Entry.at(LocalPath(existing.parent)).record
        except RecordError:
            return False
        known = all(member.lineage_sha256 in hashes for member in theirs.members)
        return (theirs.kind, theirs.family) == (record.kind, record.family) and known

    return _publish(
        entry, record, before, contents, repo_id, [last], replaces=is_of_fewer, **options
    )


def _publish(
    entry: Entry,
    record: Record,
    before: list[Entry],
    contents: Contents,
    repo_id: str,
    sources: Sequence[HubRevision],
    *,
    private: bool | None,
    license: str | None,
    token: str | None,
    replaces: Callable[[Path], bool] = lambda existing: False,
) -> HubRevision:
    """Publish the files of a folder with the redacted record and the card."""
    files = {
        **contents,
        RECORD: as_json(record.to_dict()),
        **card_files(entry.place, record, before, repo_id, license),
    }
    commit = publish(
        repo_id,
        files,
        title=f"{record.name} of {record.family}",
        private=_privacy(private, sources),
        token=token,
        replaces=replaces,
    )
    return HubRevision(repo_id, commit, token)


def _privacy(private: bool | None, sources: Sequence[HubRevision]) -> bool | None:
    """As requested; by default private if a source is, whose results are in the card."""
    if private is not None:
        return private
    for source in sources:
        if is_private(source.repo_id, source.token):
            logger.info("Private, as %s is: private=False would make it public.", source.repo_id)
            return True
    return None


def _contents(entry: Entry) -> Contents:
    """The files of a folder that are published, each as its record names it: a whole model.

    Raises:
        LineageError: if one is not as it is named, or they are no model that can be verified.
    """
    files = [file for file in entry.record.files if file.path != LOG]
    contents: Contents = {file.path: check_file(entry.place, file) for file in files}
    check_model(entry, set(contents))
    return contents


# Cards


def card(
    where: str | Path, *, revision: str | None = None, license: str | None = None
) -> ModelCard:
    """Render the card of a generation, an ensemble or a family's ensemble again.

    Args:
        where: see `load_lineage`.
        revision: see `load_lineage`.
        license: of the weights, as the Hub writes it (`"apache-2.0"`); by default that of the
            existing card.
    """
    place, record, before, repo_id = _existing(where, revision)
    results = _results(place, record, before)
    return _render(place, record, before, repo_id, license or _license(place), results)


def write_card(
    where: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    license: str | None = None,
) -> list[Path]:
    """Render a card again into a folder, `README.md` and its picture; the files.

    Args:
        where: see `load_lineage`.
        folder: created if it does not exist; a card in it is replaced.
        revision: see `load_lineage`.
        license: see `card`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    place, record, before, repo_id = _existing(where, revision)
    files = card_files(place, record, before, repo_id, license or _license(place))
    for name, content in files.items():
        Path(folder, name).write_bytes(content)
    return [Path(folder, name) for name in files]


def _existing(
    where: str | Path, revision: str | None
) -> tuple[Location, Record, list[Entry], str | None]:
    """Location and record of a network, the generations before it, its repository."""
    generations, ensemble = walk(where, revision)
    entry = ensemble or generations[-1]
    repo_id = entry.place.repo_id if isinstance(entry.place, HubRevision) else None
    return entry.place, entry.record, generations if ensemble else generations[:-1], repo_id


def card_files(
    place: Location,
    record: Record,
    before: Sequence[Entry],
    repo_id: str | None,
    license: str | None,
) -> dict[str, bytes]:
    """Card and picture, as files of the repository that is going to hold them.

    Args:
        place: of the model's files.
        record: as it is published.
        before: the generations before it, or those of the ensemble's family, by generation.
        repo_id: of the repository, if there is one.
        license: of the weights, as the Hub writes it.
    """
    from ban_hf.reports.figures import save_overview

    results = _results(place, record, before)
    rendered = _render(place, record, before, repo_id, license, results)
    files = {CARD: str(rendered).encode()}
    if _has_picture(record, results):
        with tempfile.TemporaryDirectory() as folder:
            save_overview(results, Path(folder, PICTURE))
            files[PICTURE] = Path(folder, PICTURE).read_bytes()
    return files


def _has_picture(record: Record, results: Results) -> bool:
    """Whether there is anything to compare in a picture."""
    return record.generation != 0 and is_measured(results)


def _license(place: Location) -> str | None:
    """The license in the card of a location, if it has one."""
    if CARD not in place.names():
        return None
    data = ModelCard(place.fetch(CARD).read_text("utf-8")).data.to_dict()
    found: str | None = data.get("license")
    return found


def _render(
    place: Location,
    record: Record,
    before: Sequence[Entry],
    repo_id: str | None,
    license: str | None,
    results: Results,
) -> ModelCard:
    config, data = read_json(place.fetch("config.json")), record.to_dict()
    this = data | ({"place": {"repo_id": repo_id, "revision": None}} if repo_id else {})
    return render_card(
        data,
        family=[*map(_as_family, before), *([this] if record.kind == "generation" else [])],
        repo_id=repo_id,
        license=license,
        pipeline_tag=pipeline_tag(config, place),
        picture=PICTURE if _has_picture(record, results) else None,
        results=results if record.kind == "ensemble" else None,
        remote_code="auto_map" in config,
        own_class=str(config.get("model_type")).startswith(OWN_TYPES),
    )


def _as_family(entry: Entry) -> dict[str, Any]:
    data = entry.record.to_dict()
    if not isinstance(entry.place, HubRevision):
        return data
    return data | {"place": {"repo_id": entry.place.repo_id, "revision": entry.place.revision}}


def _results(place: Location, record: Record, before: Sequence[Entry]) -> Results:
    """The measurements of a run, controls included; without them those of the records."""
    records = [entry.record.to_dict() for entry in before]
    if record.kind == "generation":
        return results_of_records([*records, record.to_dict()])
    if isinstance(place, LocalPath) and (file := place.path.parent / "results.json").is_file():
        measured = read_results([file])
        generations = [c.generation for c in measured.columns if c.kind in ("labels", "student")]
        if generations[-1:] == [before[-1].record.generation]:
            return measured
    return results_of_records(records, record.to_dict())


def pipeline_tag(config: Mapping[str, Any], place: Location) -> str:
    """The task of a model, by the class that its config names; of an ensemble its members'.

    A class with a name of its own is looked up in the Auto classes, which loads transformers.

    Raises:
        BANError: if no task has the class.
    """
    while config.get("members"):
        config = config["members"][0]
    names = config.get("architectures") or []
    if not names and config.get("model_type") == "timm_wrapper":  # as timm itself writes it
        names = ["TimmWrapperForImageClassification"]
    for name in names:
        for part, tag in TAGS_OF_CLASSES.items():
            if part in name:
                return tag
    from transformers import AutoConfig

    from ban_hf.tasks.auto import auto_class

    known = AutoConfig.from_pretrained(place.fetch("config.json").parent, trust_remote_code=False)
    name = auto_class(known).__name__
    return next(tag for tag, facts in CATALOG.items() if facts.auto_class == name)


# While a run trains


class PublishingArguments(Protocol):
    """What a `Publisher` reads of `BANTrainingArguments`."""

    push_to_hub: bool
    hub_model_id: str | None
    hub_private_repo: bool | None
    hub_license: str | None
    hub_token: str | None
    output_dir: str | None

    @property
    def process_index(self) -> int:
        """The number of this process."""
        ...


class Publisher:
    """Publishes the generations of a run as they are finished, and its family at the end.

    Only on the main process, and with `push_to_hub`; otherwise it does nothing.

    Args:
        args: of the run: `push_to_hub`, `hub_model_id` (by default the name of `output_dir`),
            `hub_private_repo`, `hub_license` and `hub_token`.
    """

    def __init__(self, args: PublishingArguments) -> None:
        self.is_on = args.push_to_hub and args.process_index == 0
        self.repo_id = args.hub_model_id or Path(str(args.output_dir)).resolve().name
        self.unpublished: dict[int, Path] = {}
        self.private, self.token = args.hub_private_repo, clean_token(args.hub_token)
        self.options: dict[str, Any] = {
            "private": self.private,
            "license": args.hub_license,
            "token": self.token,
        }

    def prepare(self, missing: Sequence[int], first: int, teacher: str | None) -> None:
        """Check, before hours of training, that it can be published; create the first repository.

        Args:
            missing: the generations that are to be trained.
            first: the first generation of the family.
            teacher: of that, `"ns/name@commit"`; one in a folder cannot be named on the Hub.

        Raises:
            PublishError: if a repository holds anything, or should be private and is not.
            HubError: if the Hub cannot be reached, or refuses.
        """
        if not self.is_on:
            return
        if teacher is not None and LOCAL_GENERATION.fullmatch(teacher):
            raise PublishError(
                "push_to_hub publishes each student after its teacher, which is in a folder: leave "
                "it out, and publish the family when it is finished, by ban-hf push FOLDER ns/name."
            )
        self.repo_id = full_name(self.repo_id, self.token)
        if not missing:
            return
        before = [generation_repository(self.repo_id, k) for k in range(first, missing[0])]
        names = [generation_repository(self.repo_id, k) for k in missing]
        sources = [*before, *([teacher.partition("@")[0]] if teacher else [])]
        is_new = not any(name.startswith(f"{self.repo_id}-gen") for name in sources)
        for name in [*([self.repo_id] if is_new else []), *names]:
            if held := contents_of(name, self.token):
                what = "is published already"
                if RECORD not in held:
                    what = f"holds {', '.join(sorted(held))}"
                raise PublishError(
                    f"{name} {what}, and this run would train another one. Nothing was changed: "
                    "give another hub_model_id, or delete it."
                )
        private = self.private
        if private is None and any(is_private(name, self.token) for name in sources):
            private = True  # as its students are going to be
        create_or_get(names[0], private, self.token)

    def publish_generation(self, generation: int, folder: Path) -> None:
        """Publish a generation, after those that are still missing: no outage stops a training."""
        if not self.is_on:
            return
        self.unpublished[generation] = folder
        for number, folder in list(self.unpublished.items()):
            name = generation_repository(self.repo_id, number)
            try:
                print(f"Published {push_generation(folder, name, **self.options)}", flush=True)
            except (BANError, OSError) as error:  # at the end it is raised
                logger.warning(
                    "%s is not published yet, but will be tried again: %s", folder, error
                )
                return
            del self.unpublished[number]

    def publish_family(self, output_dir: Path) -> None:
        """Publish everything that is not yet published, and the ensemble.

        Raises:
            PublishError: see `push_family`.
            HubError: see `push_family`.
        """
        if self.is_on:
            print(f"Published {push_family(output_dir, self.repo_id, **self.options)[-1]}")
