"""The card and the picture of a generation or an ensemble, from where its records stand."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from ban_hf.hub.location import HubCommit, LocalFolder, Place
from ban_hf.hub.verification import Entry, walk
from ban_hf.lineage.family_results import results_of_records
from ban_hf.lineage.record import Record, read_json
from ban_hf.lineage.results import Results
from ban_hf.reports.model_card import AUTO_CLASSES, render_card
from ban_hf.reports.reading import read_results
from ban_hf.reports.statistics import is_measured
from ban_hf.tasks.heads import auto_class
from ban_hf.training.ensemble import BornAgainEnsembleConfig

CARD, PICTURE = "README.md", "results.png"


def card(
    where: str | Path, *, revision: str | None = None, license: str | None = None
) -> ModelCard:
    """Render the card of a generation, an ensemble or a family's ensemble again.

    Args:
        where: see `load_lineage`.
        revision: see `load_lineage`.
        license: of the weights, as the Hub writes it (`"apache-2.0"`); by default that of the card
            that stands there.
    """
    place, record, before, repo_id = _standing(where, revision)
    results = _results(place, record, before)
    return _render(place, record, before, repo_id, license or _licence(place), results)


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
        folder: made if it is not there; a card that stands in it is replaced.
        revision: see `load_lineage`.
        license: see `card`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    place, record, before, repo_id = _standing(where, revision)
    files = card_files(place, record, before, repo_id, license or _licence(place))
    for name, content in files.items():
        Path(folder, name).write_bytes(content)
    return [Path(folder, name) for name in files]


def _standing(
    where: str | Path, revision: str | None
) -> tuple[Place, Record, list[Entry], str | None]:
    """Place and record of what a card is asked for, the generations before it, its repository."""
    chain, ensemble = walk(where, revision)
    entry = ensemble or chain[-1]
    repo_id = entry.place.repo_id if isinstance(entry.place, HubCommit) else None
    return entry.place, entry.record, chain if ensemble else chain[:-1], repo_id


def card_files(
    place: Place, record: Record, before: Sequence[Entry], repo_id: str | None, license: str | None
) -> dict[str, bytes]:
    """Card and picture, as files of the repository that is going to hold them.

    Args:
        place: of the model's files.
        record: as it is published.
        before: the generations before it, or those of the ensemble's family, from 0 upwards.
        repo_id: of the repository, if there is one.
        license: of the weights, as the Hub writes it.
    """
    results = _results(place, record, before)
    rendered = _render(place, record, before, repo_id, license, results)
    files = {CARD: str(rendered).encode()}
    if is_drawn(record, results):
        with tempfile.TemporaryDirectory() as folder:
            from ban_hf.reports.figures import save_overview  # matplotlib is slow to import

            save_overview(results, Path(folder, PICTURE))
            files[PICTURE] = Path(folder, PICTURE).read_bytes()
    return files


def is_drawn(record: Record, results: Results) -> bool:
    """Whether there is anything to compare in a picture."""
    return record.generation != 0 and is_measured(results)


def _licence(place: Place) -> str | None:
    """That of the card of a place, if it has one."""
    if CARD not in place.names():
        return None
    found: str | None = (
        ModelCard(place.fetch(CARD).read_text("utf-8")).data.to_dict().get("license")
    )
    return found


def _render(
    place: Place,
    record: Record,
    before: Sequence[Entry],
    repo_id: str | None,
    license: str | None,
    results: Results,
) -> ModelCard:
    config = AutoConfig.from_pretrained(place.fetch("config.json").parent, trust_remote_code=False)
    network = _network(config)
    own_class = type(config).__module__.startswith("ban_hf")
    this = asdict(record) | ({"place": {"repo_id": repo_id, "revision": None}} if repo_id else {})
    return render_card(
        asdict(record),
        family=[*map(_as_family, before), *([this] if record.kind == "generation" else [])],
        repo_id=repo_id,
        license=license,
        pipeline_tag=_pipeline_tag(network),
        picture=PICTURE if is_drawn(record, results) else None,
        results=results if record.kind == "ensemble" else None,
        remote_code="auto_map" in read_json(place.fetch("config.json")),
        own_class=own_class,
    )


def _as_family(entry: Entry) -> dict[str, Any]:
    if not isinstance(entry.place, HubCommit):
        return asdict(entry.record)
    place = {"repo_id": entry.place.repo_id, "revision": entry.place.revision}
    return asdict(entry.record) | {"place": place}


def _results(place: Place, record: Record, before: Sequence[Entry]) -> Results:
    """What a run measured of its family, controls included; else what the records say."""
    records = [asdict(entry.record) for entry in before]
    if record.kind == "generation":
        return results_of_records([*records, asdict(record)])
    if isinstance(place, LocalFolder) and (file := place.path.parent / "results.json").is_file():
        measured = read_results([file])
        generations = [c.generation for c in measured.columns if c.kind in ("labels", "student")]
        if generations[-1:] == [before[-1].record.generation]:
            return measured
    return results_of_records(records, asdict(record))


def _network(config: PretrainedConfig) -> PretrainedConfig:
    """The config of a network, of an ensemble that of its first member."""
    while isinstance(config, BornAgainEnsembleConfig):
        first = dict(config.members[0])
        config = CONFIG_MAPPING[first["model_type"]].from_dict(first)
    return config


def _pipeline_tag(config: PretrainedConfig) -> str:
    """The task, by the Auto class."""
    name = auto_class(config).__name__
    return next(tag for tag, auto in AUTO_CLASSES.items() if auto == name)
