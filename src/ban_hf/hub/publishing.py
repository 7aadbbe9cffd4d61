"""Publish a family on the Hub.

Each generation has a repository of its own, `ns/family-gen0`, `ns/family-gen1` and so on. It is
published after its teachers and names them by their commits. The ensemble's repository,
`ns/family`, is published last: a family that has it is complete. Published are the record, redacted
(no path of this machine, teachers by repository and commit), the card with its picture, and the
files that a model is loaded from, nothing else.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard
from msgspec.structs import replace

from ban_hf.errors import BANError, PublishError, RecordError
from ban_hf.hub.client import clean_token
from ban_hf.hub.location import LOCAL_GENERATION, HubRevision, LocalPath, Location, resolve
from ban_hf.hub.repository import Repository, full_name, generation_repository
from ban_hf.hub.verification import Entry, ancestry, check_file, check_model, walk
from ban_hf.lineage.catalog import CATALOG
from ban_hf.lineage.family import finished_generations, is_finished
from ban_hf.lineage.files import BASE_CONFIG, as_json, read_json
from ban_hf.lineage.record import (
    CARD,
    LOG,
    PICTURE,
    RECORD,
    Architecture,
    FileEntry,
    Record,
    Reference,
)
from ban_hf.lineage.results import Results, results_of_records
from ban_hf.reports.model_card import render_card
from ban_hf.reports.reading import read_results
from ban_hf.reports.statistics import is_measured

if TYPE_CHECKING:
    from ban_hf.training.arguments import BANTrainingArguments

logger = logging.getLogger(__name__)

OWN_TYPES = ("ban_", "born_again_")  # how the model types of ban_hf's classes begin
#: Tasks by what the name of a model's class contains.
TAGS_OF_CLASSES = {
    **{facts.loss_type: facts.name for facts in CATALOG.values() if facts.loss_type},
    "LMHeadModel": "text-generation",
}


@dataclass(frozen=True)
class Terms:
    """How networks are published: for whom, under which license, with whose token."""

    private: bool | None
    license: str | None
    token: str | None

    def private_after(self, sources: Iterable[str]) -> bool | None:
        """As requested; by default private if a source is, whose results are in the card."""
        for name in sources if self.private is None else ():
            if Repository(name, self.token).is_private():
                logger.info("Private, as %s is: private=False would make it public.", name)
                return True
        return self.private


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
    output_dir, terms = Path(output_dir), Terms(private, license, clean_token(token))
    repo_id = full_name(repo_id, terms.token)
    generations, ensemble = _family(output_dir)
    commits: dict[str, HubRevision] = {}  # by the hashes of the local records
    for entry in generations:
        published = [commits.get(named.lineage_sha256) for named in entry.record.teachers]
        teachers = [str(commit) if commit else None for commit in published]
        name = generation_repository(repo_id, entry.record.generation)
        last = commits[entry.lineage_sha256] = _push_generation(entry, name, teachers, terms)
    if ensemble is None:
        logger.warning("%s has no ensemble, so nothing goes to %s.", output_dir, repo_id)
        return list(commits.values())
    return [*commits.values(), _push_ensemble(ensemble, repo_id, last, terms)]


def _family(output_dir: Path) -> tuple[list[Entry], Entry | None]:
    """The generations that a directory publishes, and its ensemble; all files are checked."""
    generations = [Entry.at(LocalPath(folder)) for folder in finished_generations(output_dir)]
    if not generations:
        raise BANError(f"output_dir={output_dir} holds no finished generation to publish.")
    folder = output_dir / "ensemble"
    ensemble = Entry.at(LocalPath(folder)) if is_finished(folder) else None
    known = {entry.record.generation: entry.record.weights_sha256 for entry in generations}
    for member in ensemble.record.members if ensemble else ():
        if known.get(member.generation) != member.weights_sha256:
            raise PublishError(
                f"{folder} has another generation {member.generation} for a member than the one "
                "beside it. Nothing was sent: move the ensemble away, and give the run's command "
                "again to make a new one."
            )
    for entry in (*generations, *([ensemble] if ensemble else [])):
        _check_publishable(entry)
    note = read_json(output_dir / RECORD) if is_finished(output_dir) else {}
    noted = {generation["lineage_sha256"] for generation in note.get("generations", [])}
    if strays := [str(e.place) for e in generations if e.lineage_sha256 not in noted]:
        raise BANError(
            f"{', '.join(strays)}: not trained by a run of {output_dir}, so others may have "
            "published it already. Nothing was sent. (push_generation publishes a single one.)"
        )
    teacher = note["run"].get("teacher")
    if teacher and not LOCAL_GENERATION.fullmatch(teacher["teacher"]):
        return generations[1:], ensemble  # the first is of the Hub, and published already
    for entry in generations:  # those that were copied from a folder may have been pulled there
        if not any(file.path == LOG for file in entry.record.files):  # it is not published
            raise PublishError(
                f"{entry.place} was pulled, so it is published already. Nothing was sent: "
                "publish its students one by one, by push_generation, the first with "
                "teacher='ns/name@commit'."
            )
    return generations, ensemble


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
    terms = Terms(private, license, clean_token(token))
    entry, repo_id = Entry.at(LocalPath(Path(folder))), full_name(repo_id, terms.token)
    if entry.record.kind != "generation":
        raise BANError(f"{folder} holds an ensemble: publish it with its family, push_family.")
    count = len(entry.record.teachers)
    given = [teacher] if isinstance(teacher, str) else list(teacher or [])
    if given and len(given) != count:
        raise BANError(f"teacher={teacher!r}: {folder} records {count} teachers: name each once.")
    _check_publishable(entry)
    return _push_generation(entry, repo_id, given or [None] * count, terms)


def _push_generation(
    entry: Entry, repo_id: str, given: Sequence[str | None], terms: Terms
) -> HubRevision:
    teachers = entry.record.teachers
    places = [
        _published_teacher(entry, named, repo_id, name, terms.token)
        for named, name in zip(teachers, given, strict=True)
    ]
    before = ancestry(*places)
    entries = {published.place: published for published in before}
    for named, place in zip(teachers, places, strict=True):
        if entries[place].record.weights_sha256 != named.weights_sha256:
            raise PublishError(
                f"{place} is another network than the generation {named.generation} that taught "
                f"{entry.place}. Nothing was sent: name the right one by teacher='ns/name@commit'."
            )
    record = replace(_redacted(entry), teachers=tuple(entries[p].reference() for p in places))
    return _publish(entry, record, before, repo_id, places, terms)


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
    return HubRevision(name, Repository(name, token).published_commit(), token)


def _push_ensemble(entry: Entry, repo_id: str, last: HubRevision, terms: Terms) -> HubRevision:
    """Publish the ensemble, whose members are the last generation and some of its teachers."""
    before = ancestry(last)
    published = {e.record.generation: e for e in before}
    members = tuple(published[m.generation].reference() for m in entry.record.members)
    record = replace(_redacted(entry), members=members)
    hashes = {e.lineage_sha256 for e in before}

    def is_of_fewer(existing: Path) -> bool:
        try:
            theirs = Entry.at(LocalPath(existing.parent)).record
        except RecordError:
            return False
        known = all(member.lineage_sha256 in hashes for member in theirs.members)
        return (theirs.kind, theirs.family) == (record.kind, record.family) and known

    return _publish(entry, record, before, repo_id, [last], terms, replaces=is_of_fewer)


def _publish(
    entry: Entry,
    record: Record,
    before: list[Entry],
    repo_id: str,
    sources: Sequence[HubRevision],
    terms: Terms,
    replaces: Callable[[Path], bool] = lambda existing: False,
) -> HubRevision:
    """Publish the files of a folder with the redacted record and the card."""
    private = terms.private_after(source.repo_id for source in sources)
    files = {
        **{file.path: entry.place.fetch(file.path) for file in _published(entry)},
        RECORD: as_json(record.to_dict()).encode(),
        **Card(entry.place, record, before, repo_id, terms.license).files(),
    }
    title = f"{record.name} of {record.family}"
    commit = Repository(repo_id, terms.token, private).publish(files, title, replaces)
    return HubRevision(repo_id, commit, terms.token)


def _published(entry: Entry) -> list[FileEntry]:
    """The files of a folder that are published, as its record has them."""
    return [file for file in entry.record.files if file.path != LOG]


def _redacted(entry: Entry) -> Record:
    return entry.record.redacted(file.path for file in _published(entry))


def _check_publishable(entry: Entry) -> None:
    """Check that what is published is as its record has it, and a model that can be verified."""
    check_base_is_on_hub(entry.record.architecture, str(entry.place))
    for file in _published(entry):
        check_file(entry.place, file)
    check_model(entry, {file.path for file in _published(entry)})


def check_base_is_on_hub(network: Architecture, whose: str) -> None:
    """Raise if a network is an adapter of a base that others cannot load."""
    if network.adapter is not None and network.adapter.base_revision is None:
        raise PublishError(
            f"{whose} is an adapter of a base in a folder, {network.adapter.base}, which nobody "
            "else could load. Nothing was sent: publish the base, and load it by its Hub id in "
            "model_init."
        )


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
    return Card.of(where, revision, license).render()


def write_card(
    where: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    license: str | None = None,
) -> list[Path]:
    """Render a card again, see `card`, into a folder: `README.md` and its picture; the files."""
    files = Card.of(where, revision, license).files()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        Path(folder, name).write_bytes(content)
    return [Path(folder, name) for name in files]


@dataclass(frozen=True)
class Card:
    """What the card of a network is rendered from."""

    place: Location  # of the model's files
    record: Record  # as it is published
    before: Sequence[Entry]  # the generations before it, or those of the ensemble's family
    repo_id: str | None  # of the repository that is going to hold it, if there is one
    license: str | None

    @classmethod
    def of(
        cls, where: str | Path, revision: str | None = None, license: str | None = None
    ) -> "Card":
        """Of an existing network; the license is by default that of its card."""
        *before, entry = walk(where, revision)
        place = entry.place
        repo_id = place.repo_id if isinstance(place, HubRevision) else None
        if not license and CARD in place.names():
            license = ModelCard(place.fetch(CARD).read_text("utf-8")).data.to_dict().get("license")
        return cls(place, entry.record, before, repo_id, license)

    def files(self) -> dict[str, bytes]:
        """Card and picture, as files of the repository."""
        from ban_hf.reports.figures import save_overview

        files = {CARD: str(self.render()).encode()}
        if self.has_picture:
            with tempfile.TemporaryDirectory() as folder:
                save_overview(self.results, Path(folder, PICTURE))
                files[PICTURE] = Path(folder, PICTURE).read_bytes()
        return files

    def render(self) -> ModelCard:
        """The card."""
        adapter, data = self.record.architecture.adapter, self.record.to_dict()
        config = read_json(self.place.fetch("config.json" if adapter is None else BASE_CONFIG))
        family = [_with_place(entry.record, entry.place) for entry in self.before]
        if self.record.kind == "generation":
            place = {"place": {"repo_id": self.repo_id, "revision": None}}
            family.append(data | place if self.repo_id else data)
        tag = _pipeline_tag(config, self.place)
        name = str(self.record.architecture.class_name)
        classifies = adapter is not None and ("Classification" in name or "Segmentation" in name)
        return render_card(
            data,
            family=family,
            repo_id=self.repo_id,
            license=self.license,
            pipeline_tag=tag,
            num_labels=len(config.get("id2label") or ()) if classifies else None,
            picture=PICTURE if self.has_picture else None,
            results=self.results if self.record.kind == "ensemble" else None,
            remote_code="auto_map" in config,
            own_class=str(config.get("model_type")).startswith(OWN_TYPES),
        )

    @property
    def has_picture(self) -> bool:
        """Whether there is anything to compare in a picture."""
        return self.record.generation != 0 and is_measured(self.results)

    @cached_property
    def results(self) -> Results:
        """The measurements of a run, controls included; without them those of the records."""
        records = [entry.record.to_dict() for entry in self.before]
        if self.record.kind == "generation":
            return results_of_records([*records, self.record.to_dict()])
        path = self.place.path.parent if isinstance(self.place, LocalPath) else None
        if path is not None and (path / "results.json").is_file():
            measured = read_results([path / "results.json"])
            networks = [c for c in measured.columns if c.kind in ("labels", "student")]
            if networks and networks[-1].generation == self.before[-1].record.generation:
                return measured
        return results_of_records(records, self.record.to_dict())


def _with_place(record: Record, place: Location) -> dict[str, Any]:
    if not isinstance(place, HubRevision):
        return record.to_dict()
    return record.to_dict() | {"place": {"repo_id": place.repo_id, "revision": place.revision}}


def _pipeline_tag(config: Mapping[str, Any], place: Location) -> str:
    """The task of a model, by the class that its config names; of an ensemble its members'.

    A class with a name of its own is looked up in the Auto classes, which loads transformers.
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


class Publisher:
    """Publishes the generations of a run as they are finished, and its family at the end.

    Only on the main process, and with `push_to_hub`; otherwise it does nothing. `hub_model_id` is
    by default the name of `output_dir`.
    """

    def __init__(self, args: "BANTrainingArguments") -> None:
        self.is_on = args.push_to_hub and args.process_index == 0
        self.repo_id = args.hub_model_id or Path(str(args.output_dir)).resolve().name
        self.terms = Terms(args.hub_private_repo, args.hub_license, clean_token(args.hub_token))
        self.unpublished: dict[int, Path] = {}

    def prepare(self, missing: Sequence[int], first: int, teacher: str | None) -> None:
        """Check, before hours of training, that it can be published; create the first repository.

        Args:
            missing: the generations that are to be trained.
            first: the first generation of the family.
            teacher: of that, `"ns/name@commit"`; one in a folder cannot be named on the Hub.
        """
        if not self.is_on:
            return
        if teacher is not None and LOCAL_GENERATION.fullmatch(teacher):
            raise PublishError(
                "push_to_hub publishes each student after its teacher, which is in a folder: leave "
                "it out, and publish the family when it is finished, by ban-hf push FOLDER ns/name."
            )
        token = self.terms.token
        self.repo_id = full_name(self.repo_id, token)
        if not missing:
            return
        sources = [generation_repository(self.repo_id, k) for k in range(first, missing[0])]
        names = [generation_repository(self.repo_id, k) for k in missing]
        sources += [teacher.partition("@")[0]] if teacher else []
        is_new = not any(name.startswith(f"{self.repo_id}-gen") for name in sources)
        for name in [*([self.repo_id] if is_new else []), *names]:
            if held := Repository(name, token).held():
                holds = f"holds {', '.join(sorted(held))}"
                what = "is published already" if RECORD in held else holds
                raise PublishError(
                    f"{name} {what}, and this run would train another one. Nothing was changed: "
                    "give another hub_model_id, or delete it."
                )
        private = self.terms.private_after(sources)  # as its students are going to be
        Repository(names[0], token, private).create_or_get()

    def publish_generation(self, generation: int, folder: Path) -> None:
        """Publish a generation, after those that are still missing: no outage stops a training."""
        if not self.is_on:
            return
        self.unpublished[generation] = folder
        for number, folder in list(self.unpublished.items()):
            name = generation_repository(self.repo_id, number)
            try:
                print(
                    f"Published {push_generation(folder, name, **asdict(self.terms))}", flush=True
                )
            except (BANError, OSError) as error:  # at the end it is raised
                logger.warning(
                    "%s is not published yet, but will be tried again: %s", folder, error
                )
                return
            del self.unpublished[number]

    def publish_family(self, output_dir: Path) -> None:
        """Publish everything that is not yet published, and the ensemble."""
        if self.is_on:
            print(f"Published {push_family(output_dir, self.repo_id, **asdict(self.terms))[-1]}")
