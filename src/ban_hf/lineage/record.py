"""The record of a network: what it is, which networks taught it, what it measured.

`Record` is the content of `lineage.json` (UTF-8, sorted keys) in the folder of a generation or an
ensemble. It lists the sha256 of every file beside it, and a student's record lists the sha256 of
each teacher's record and weights: a hash chain. Hashes prove integrity, not authorship.

Schemas: `ban_hf.lineage/2` is written. Version 1, in which a network has one teacher at most, is
read; a record of version 1 keeps its schema when it is published, so that its bytes do not change.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field
from msgspec.structs import replace

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import MARKUP, Activation, as_name, data_name, method_of
from ban_hf.lineage.files import plain_json, read_json, sha256_of_file, sha256_of_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMAS = ("ban_hf.lineage/1", "ban_hf.lineage/2")
SCHEMA = SCHEMAS[-1]
RECORD = "lineage.json"
LOG = "training_log.json"  # beside the record; it is not published
CARD, PICTURE = "README.md", "results.png"

#: Fields of a config that a forward, a save or another release of transformers may change.
TRANSIENT = frozenset(
    "problem_type dtype torch_dtype transformers_version _name_or_path architectures auto_map "
    "use_cache".split()
)

Count = Annotated[int, Meta(ge=0)]
#: A finite number: JSON has no infinity, but 1e999 reads as one.
Number = (
    Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
    | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
)


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a record."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in `lineage.json`."""
        data: dict[str, Any] = plain_json(msgspec.to_builtins(self))
        return data


class Reference(Part, frozen=True, omit_defaults=True):
    """How a record names a teacher or a member: by its hashes, and by where it is."""

    generation: Count
    lineage_sha256: str  # of its record
    weights_sha256: tuple[str, ...]  # of its weight files
    path: str | None = None  # in local records: from the folder of the record to its folder
    repo_id: str | None = None  # its repository on the Hub, `"ns/name"`
    revision: str | None = None  # its commit there, 40 hex digits

    def __post_init__(self) -> None:
        if self.path is None and (self.repo_id is None or self.revision is None):
            raise BANError("a teacher or member has repo_id and revision, or, locally, a path.")

    @property
    def hashes(self) -> tuple[str, tuple[str, ...]]:
        """Of its record and its weights: two references with the same name the same network."""
        return self.lineage_sha256, self.weights_sha256


class Objective(Part, frozen=True, omit_defaults=True):
    """What a student minimized: `teacher_weight` * objective + `label_weight` * label loss."""

    name: str
    temperature: Number
    teacher_weight: Number
    label_weight: Number
    activation: Activation = "softmax"  # what an item is

    def __post_init__(self) -> None:
        check_name("objective.name", self.name)


class FileEntry(Part, frozen=True):
    """A file of a network's folder: its path in it, its size in bytes, its sha256."""

    path: str
    size: Count
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        is_odd = self.path in ("", ".") or "\\" in self.path or ":" in self.path
        if is_odd or path.is_absolute() or ".." in path.parts:
            raise BANError(f"{self.path!r} is no path within the folder of the record.")


class Adapter(Part, frozen=True, omit_defaults=True):
    """What was trained beside a frozen base, and that base, which is not in the folder."""

    type: str  # as peft names it: LORA
    config_sha256: str  # without the base's name
    base: str  # its Hub id; of one in a folder the folder's name
    base_files: tuple[FileEntry, ...]  # its config and its weights
    base_revision: str | None = None  # its commit on the Hub

    def __post_init__(self) -> None:
        check_name("architecture.adapter.type", self.type)
        check_name("architecture.adapter.base", self.base)


class Architecture(Part, frozen=True, omit_defaults=True):
    """Type, class and size of a network."""

    model_type: str | None = None
    class_name: str | None = field(name="class", default=None)
    num_parameters: Count | None = None
    config_sha256: str | None = None  # without the fields that a save or a forward changes
    shared_ends: bool = False  # whether its first and last layers are its teacher's, frozen
    adapter: Adapter | None = None  # if it is one; class, type and config are then its base's

    def __post_init__(self) -> None:
        for name, value in (("class", self.class_name), ("model_type", self.model_type)):
            if value is not None:
                check_name(f"architecture.{name}", value)


class Seed(Part, frozen=True, omit_defaults=True):
    """Where the random numbers came from."""

    seed: int | None = None  # of this network
    family_seed: int | None = None  # of its family, from which `seed` is drawn
    init_sha256: str | None = None  # of the fresh weights
    trained_sha256: str | None = None  # of the trained weights


class Training(Part, frozen=True, omit_defaults=True):
    """How a network was trained."""

    arguments: dict[str, Any] | None = None  # as `canonical_arguments` gives them
    arguments_sha256: str | None = None
    steps: Count | None = None  # of the optimizer
    epochs: Number | None = None  # passes over the training data
    world_size: Count | None = None  # processes
    hardware: str | None = None  # in words
    seconds: Number | None = None  # of training, over all resumes
    #: Name of the checkpoint that the last resume began from; not set in an ensemble.
    resumed_from: str | UnsetType | None = UNSET


class MetricValue(Part, frozen=True):
    """One measurement."""

    name: str  # of the metric
    value: Number | None  # None if it is not finite
    split: str  # of the data, such as `test`
    n: Number | None = None  # items that were measured
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        check_name("metrics.name", self.name)
        check_name("metrics.split", self.split)


class Record(Struct, forbid_unknown_fields=True):
    """One generation or ensemble: the fields of `lineage.json`.

    Its parts are frozen. The record itself is filled while a network is trained.

    Attributes:
        kind: `generation` or `ensemble`.
        family: name of the sequence.
        generation: 0 for a network trained on labels alone; 1 + the highest of its teachers' for
            a student; None for an ensemble.
        teachers: the networks that taught it; `teacher` in the file, where it is null, one object,
            or a list of several.
        members: of an ensemble.
        objective: of a student.
        architecture: of the network.
        seed: where its random numbers came from.
        data: what is known of the data, any JSON: `source` (`id`, `config`, `revision`), and for
            each of `train`, `validation` and `test` its `items`, `fingerprint` and so on.
        training: how it was trained.
        metrics: what was measured.
        files: every file of the folder but the record and the README.
        code: versions of Python and of the packages, and `git_commit` of ban_hf's source tree
            (None where it is installed without one).
        created: RFC 3339, UTC.
        schema: of the file.
    """

    kind: Literal["generation", "ensemble"]
    family: str
    generation: Count | None = None
    teachers: tuple[Reference, ...] = field(name="teacher", default=())
    members: tuple[Reference, ...] = ()
    objective: Objective | None = None
    architecture: Architecture = field(default_factory=Architecture)
    seed: Seed = field(default_factory=Seed)
    data: dict[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    metrics: tuple[MetricValue, ...] = ()
    files: tuple[FileEntry, ...] = ()
    code: Mapping[str, str | None] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        check_name("family", self.family)
        check_data(self.data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Record":
        """The record of plain data, as in `lineage.json`.

        Raises:
            BANError: naming the field that is missing, unknown, or of another type.
        """
        check_schema(data)
        kind, teacher = data.get("kind"), data.get("teacher")
        if kind not in ("generation", "ensemble"):
            raise BANError(f"it is not the record of a generation or an ensemble: kind {kind!r}.")
        is_version_1 = data["schema"] == SCHEMAS[0]
        if isinstance(teacher, list) and len(teacher) < 2 and not is_version_1:
            raise BANError("a list of teachers must have several: write one as an object.")
        if not isinstance(teacher, list) or is_version_1:
            teacher = [] if teacher is None else [teacher]
        try:
            return msgspec.convert({**data, "teacher": teacher}, cls)
        except msgspec.ValidationError as error:
            raise BANError(f"{error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in `lineage.json`."""
        data: dict[str, Any] = plain_json(msgspec.to_builtins(self))
        if len(self.teachers) < 2:
            data["teacher"] = data["teacher"][0] if self.teachers else None
        return data

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read a folder's record.

        Raises:
            BANError: naming the file, and what is wrong with it.
        """
        data = read_json(folder / RECORD)
        try:
            return cls.from_dict(data)
        except BANError as error:
            raise BANError(f"{folder / RECORD}: {error}") from error

    def write(self, folder: Path) -> None:
        """Write `lineage.json`, with the files of the folder as they are now."""
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self.files = tuple(
            file_entry(path, path.relative_to(folder).as_posix())
            for path in files
            if path.name not in (RECORD, CARD)
        )
        self.schema, self.code = SCHEMA, {"git_commit": source_commit(), **self.code}
        write_json(folder / RECORD, self.to_dict())

    def validate(self) -> None:
        """Check that the record is complete and its parts fit together.

        Raises:
            BANError: naming what is missing or does not fit.
        """
        is_generation, network = self.kind == "generation", self.architecture
        named = (network.class_name, network.model_type, network.num_parameters)
        problems = {
            "its generation must be a number from 0": is_generation and self.generation is None,
            "generation 0 has no teacher, and every other has one": is_generation
            and (self.generation == 0) == bool(self.teachers),
            "a generation has no members": is_generation and bool(self.members),
            "its seed is missing": is_generation and self.seed.seed is None,
            "an ensemble has members, and no generation or teacher": not is_generation
            and not (self.members and self.generation is None and not self.teachers),
            "its architecture must have class, model_type and num_parameters": None in named,
        }
        for problem, is_so in problems.items():
            if is_so:
                raise BANError(f"{problem}.")

    def redacted(self, published: Iterable[str]) -> "Record":
        """The record for others to read: no path of this machine, only files that are published.

        Teachers and members are not changed: whoever publishes names them by their commits.
        """
        training = _without_paths(self.training.to_dict(), _is_of_a_machine)
        if "arguments" in training:
            training["arguments"] = _without_paths(training["arguments"], _has_separator)
            training["arguments_sha256"] = sha256_of_json(training["arguments"])
        data = _without_paths(self.data, _is_of_a_machine)
        source = data.get("source", data)
        if source and source.get("id"):
            source["id"] = data_name({"data": data})
        names = set(published)
        files = tuple(file for file in self.files if file.path in names)
        return replace(self, data=data, training=msgspec.convert(training, Training), files=files)

    @property
    def name(self) -> str:
        """`generation 2`, or `ensemble`."""
        return "ensemble" if self.kind == "ensemble" else f"generation {self.generation}"

    @property
    def method(self) -> str:
        """How it learned, as the paper names it: labels, BAN, BAN+L, CWTM, DKPP, ..."""
        return method_of(self.objective.to_dict() if self.objective else None)

    @property
    def weights_sha256(self) -> tuple[str, ...]:
        """The digests of its weight files, by which students and ensembles name it."""
        return tuple(file.sha256 for file in self.files if file.path.endswith(".safetensors"))

    def metric(self, name: str, split: str) -> float | None:
        """A metric's value, or None if it was not measured."""
        found = (m.value for m in self.metrics if (m.name, m.split) == (name, split))
        return next(found, None)


# What is checked of a record besides its types


class _Source(Struct):
    id: str | None = None
    config: str | None = None
    revision: str | None = None


class _Train(Struct):
    views: dict[str, Any] | None = None
    items: Number | None = None
    window: Number | None = None


class _Data(Struct):
    """What a record's `data` has, as far as it is read."""

    source: _Source | None = None
    train: _Train | None = None
    validation: dict[str, Any] | None = None
    test: dict[str, Any] | None = None


def check_data(data: Any) -> None:
    """Check that a description of the data has the form of a record's `data`."""
    try:
        msgspec.convert(data, _Data)
    except msgspec.ValidationError as error:
        where = re.sub(r"^(.*) - at `\$(.*)`$", r"data\2: \1", str(error))
        raise BANError(f"{where}.") from error


def check_name(what: str, name: str) -> None:
    """Check that a name can be shown in a card."""
    if name != as_name(name):
        raise BANError(
            f"{what}={name[:200]!r} must have 1 to 200 printable characters, and none of "
            f"{' '.join(MARKUP)}: give another name."
        )


def check_schema(data: Mapping[str, Any]) -> None:
    """Check that a lineage file has a schema that this version reads."""
    schema = data.get("schema")
    if schema in SCHEMAS:
        return
    later = re.fullmatch(r"ban_hf\.lineage/(\d+)", schema) if isinstance(schema, str) else None
    if later and int(later[1]) > len(SCHEMAS):
        raise BANError(
            f"written by a later ban_hf (schema {schema}): update with pip install -U ban-hf."
        )
    raise BANError(f"it has schema {schema!r}, not {SCHEMA}, so it is no lineage of ban_hf.")


# Read of folders, of a network and of git


def reference(folder: Path, base: Path) -> Reference:
    """How a record in `base` names the network in another folder."""
    record = Record.read(folder)
    return Reference(
        generation=record.generation or 0,
        lineage_sha256=sha256_of_file(folder / RECORD),
        weights_sha256=record.weights_sha256,
        path=Path(os.path.relpath(folder, base)).as_posix(),
    )


def file_entry(path: Path, name: str) -> FileEntry:
    """How a record lists a file."""
    return FileEntry(name, path.stat().st_size, sha256_of_file(path))


def architecture(model: "PreTrainedModel") -> Architecture:
    """Type, class, canonical config and size of a network."""
    return Architecture(
        model_type=model.config.model_type,
        class_name=type(model).__name__,
        num_parameters=sum(p.numel() for p in model.parameters()),
        config_sha256=sha256_of_json(_canonical(model.config.to_dict())),
    )


def _canonical(config: Any) -> Any:
    """A config without its transient fields, and those of the configs within it."""
    if isinstance(config, dict):
        return {k: _canonical(v) for k, v in config.items() if k not in TRANSIENT}
    return [_canonical(v) for v in config] if isinstance(config, list) else config


def source_commit() -> str | None:
    """The git commit of the source tree that ban_hf runs from; None where it is installed.

    Read from git's files: a training must not depend on a git command.
    """
    root = Path(__file__).resolve().parents[3]  # of src/ban_hf/lineage/record.py
    git = root / ".git"
    try:
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = root / git.read_text("utf-8").partition("gitdir:")[2].strip()
        head = (git / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref:"):
            return head
        ref = head.partition("ref:")[2].strip()
        common = git / "commondir"  # of a worktree: branches are in the main repository
        shared = git / common.read_text("utf-8").strip() if common.is_file() else git
        for file in (git / ref, shared / ref):
            if file.is_file():
                return file.read_text("utf-8").strip()
        packed = (shared / "packed-refs").read_text("utf-8").splitlines()
        return next((line.partition(" ")[0] for line in packed if line.endswith(f" {ref}")), None)
    except OSError:
        return None


# Without the paths of this machine


def _without_paths(value: Any, is_path: Callable[[str], bool]) -> Any:
    """Plain data with only the last part of every path in it."""
    if isinstance(value, dict):
        return {key: _without_paths(part, is_path) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part, is_path) for part in value]
    if isinstance(value, str) and is_path(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _is_of_a_machine(text: str) -> bool:
    """Whether a text is a path: absolute, in a home, relative to here, or of an existing file."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    if absolute or text.startswith(("~", "./", "../", "file:")):
        return True
    return len(text) < 1000 and "/" in text and Path(text).exists()


def _has_separator(text: str) -> bool:
    """Whether an argument is a path: of the recorded arguments, only paths have a separator."""
    return "/" in text or "\\" in text
