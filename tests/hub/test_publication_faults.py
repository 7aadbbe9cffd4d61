"""A publication with a fault at its n-th request, for every n, of every kind.

It ends with a complete and verified family, by itself or after one more push, and in between there
is nothing that looks complete and is not.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from ban_hf import HubError, LineageError, PublishError, push_family, verify_lineage
from ban_hf.hub import client as network

FAMILY = ["ns/fam-gen0", "ns/fam-gen1", "ns/fam"]


def faults(hub: LoopbackHub, kind: str, **options) -> Iterator[int]:
    """The empty Hub with a fault at its first request, then at its second, to the last."""
    empty = hub.snapshot()
    for n in itertools.count(1):
        hub.heal()
        hub.restore(empty)
        before = len(hub.requests)
        hub.fail(n, kind, **options)
        yield n
        if len(hub.requests) - before < n:
            assert n > 3 * 10, "the fault was to be tried at every request of three repositories"
            return


def push(folder: Path) -> None:
    push_family(folder, "ns/fam", private=True)


def is_complete(hub: LoopbackHub) -> None:
    """Every repository once, private, in one commit and with its tag; and all of it verified."""
    assert list(hub.repositories) == FAMILY
    for repo in hub.repositories.values():
        assert repo.private
        assert len(repo.commits_of("main")) == 2  # the Hub's first one, and ours
        assert repo.tags == {"v1": repo.head}
    verify_lineage("ns/fam")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["error", "error_after", "drop", "drop_after", "cut", "stale"])
def test_a_fault_that_passes_is_survived(hub, another, kind):
    for _ in faults(hub, kind):
        push(another)
        hub.heal()
        is_complete(hub)


@pytest.mark.slow
def test_a_server_that_is_slow_once_is_asked_again(hub, another, monkeypatch):
    monkeypatch.setattr(network, "TIMEOUT", 0.15)
    for _ in faults(hub, "slow", seconds=0.3):
        push(another)
        hub.heal()
        is_complete(hub)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["error", "drop_after"])
def test_a_hub_that_goes_away_leaves_nothing_that_looks_complete(hub, another, kind, monkeypatch):
    monkeypatch.setattr(network, "ATTEMPTS", 1)
    for _ in faults(hub, kind, times=1_000_000):
        try:
            push(another)
        except HubError:
            hub.heal()
            published = {name for name in FAMILY if is_published(hub, name)}
            if "ns/fam" in published:  # only its tag is missing
                verify_lineage("ns/fam")
            else:
                with pytest.raises(LineageError):
                    verify_lineage("ns/fam")
            push(another)
        hub.heal()
        is_complete(hub)


def is_published(hub: LoopbackHub, name: str) -> bool:
    return name in hub.repositories and "lineage.json" in hub.repositories[name].files()


@pytest.mark.parametrize("kind", ["error", "error_after", "drop", "drop_after", "cut", "stale"])
def test_a_server_that_ignores_private_gets_no_weights_with_any_fault(hub, another, kind):
    hub.ignores_private = True
    empty = hub.snapshot()
    for n in range(1, 8):
        hub.heal()
        hub.restore(empty)
        hub.fail(n, kind)
        with pytest.raises(PublishError, match="should be private"):
            push(another)
        assert set(hub.repositories) <= {"ns/fam-gen0"}
        assert not [r for r in hub.requests if "/lfs/" in r.path or "/commit/" in r.path]
