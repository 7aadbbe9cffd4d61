"""What holds for every test: no network, one thread, real data only where it is."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Read when the libraries are imported, so set before any of them is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import atexit
import gc

import family
import pytest
import torch
import transformers
from loopback_hub import LoopbackHub
from loopback_hub.client import connect

from ban_hf import push_family
from ban_hf.hub import client

transformers.logging.disable_progress_bar()
gc.freeze()  # every training begins with a gc.collect(), slow over all that is imported
atexit.register(gc.unfreeze)
torch.set_num_threads(1)  # several would make sums, and so whole runs, depend on the machine


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run."""
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "no CUDA device"
    if os.environ["HF_HUB_OFFLINE"] == "1":
        reasons["network"] = "HF_HUB_OFFLINE is 1; set it to 0 to use the network"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets: BAN_HF_DATA, or shared/data beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("BAN_HF_DATA", default))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}: set BAN_HF_DATA to a folder that holds cifar100/")
    return root


@pytest.fixture(scope="session")
def never_killed(tmp_path_factory) -> Path:
    """Generations 0, 1 and 2 and their ensemble, in one go. Not to be changed."""
    folder = tmp_path_factory.mktemp("family")
    family.train(folder)
    return folder


@pytest.fixture
def run(never_killed, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(never_killed, tmp_path / "run"))


@pytest.fixture
def draw() -> Callable:
    """How a card's picture is drawn: the real one takes a second."""
    return lambda results, path: path.write_bytes(b"PNG")


@pytest.fixture
def hub(monkeypatch, tmp_path, draw) -> Iterator[LoopbackHub]:
    """An empty Hub, the only one that this process can reach; a fault passes without a wait."""
    monkeypatch.setattr("ban_hf.reports.figures.save_overview", draw)
    with LoopbackHub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
        yield hub


@pytest.fixture(scope="session")
def another(tmp_path_factory) -> Path:
    """Generations 0 and 1 of another seed, and their ensemble. Not to be changed."""
    folder = tmp_path_factory.mktemp("another")
    family.train(folder, generations=1, seed=5)
    return folder


@pytest.fixture(scope="session")
def publication(never_killed, tmp_path_factory):
    """What a Hub holds after that family was published as ns/fam."""
    with pytest.MonkeyPatch.context() as monkeypatch, LoopbackHub() as hub:
        connect(hub, monkeypatch, tmp_path_factory.mktemp("cache"))
        push_family(never_killed, "ns/fam", license="apache-2.0")
        return hub.snapshot()


@pytest.fixture
def published(hub, publication) -> LoopbackHub:
    """A Hub that holds that family."""
    hub.restore(publication)
    return hub
