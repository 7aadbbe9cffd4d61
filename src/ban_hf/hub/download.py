"""Download a family, or one generation, into the folders that a run writes."""

from pathlib import Path

from ban_hf.hub.client import clean_token
from ban_hf.hub.verification import copy_verified, folder_name, load_lineage, walk
from ban_hf.lineage.family import Lineage


def pull(
    where: str | Path,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Lineage:
    """Download a family, or one generation, into the folders that `train_generations` writes.

    Every file is checked against its record. An existing folder stays, if it is the same.

    Args:
        where: `"ns/family"` for all generations and the ensemble, `"ns/family-gen2"` for that one
            alone; with `@revision` if wanted.
        output_dir: to hold `generation-0` and so on, and `ensemble`.
        revision: a branch, a tag or a commit; by default `main`.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The lineage of what was pulled.

    Raises:
        LineageError: if it is not what its records say; a folder is written whole or not at all.
        BANError: if a folder is in the way.
    """
    output_dir = Path(output_dir)
    generations, ensemble = walk(where, revision, clean_token(token))
    entries = [*generations, ensemble] if ensemble else generations[-1:]
    copy_verified(entries, output_dir)
    last = entries[-1].record
    return load_lineage(output_dir if ensemble else output_dir / folder_name(last))
