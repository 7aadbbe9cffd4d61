"""Sequences that publish while they train, and those that continue a published generation."""

import shutil

import family
import pytest
import tiny
from launch import run_recipe
from table_results import family_rows
from transformers import TrainerCallback

from ban_hf import HubError, PublishError, load_lineage, push_family, verify_lineage
from ban_hf.errors import UnverifiableError
from ban_hf.lineage.record import Record
from ban_hf.reports.figures import save_overview

GENERATIONS = ["ns/fam-gen0", "ns/fam-gen1", "ns/fam-gen2"]
FAMILY = [*GENERATIONS, "ns/fam"]
PUBLISHED = {"push_to_hub": True, "hub_model_id": "ns/fam"}
OTHER = tiny.vit(num_labels=3)


class Outage(TrainerCallback):
    """The Hub goes away when a generation begins to be trained."""

    def __init__(self, hub, generation: int) -> None:
        self.hub, self.generation = hub, generation

    def on_train_begin(self, args, state, control, **kwargs):
        if args.output_dir.endswith(f"generation-{self.generation}"):
            self.hub.fail(1, "error", times=10_000)


class TestTraining:
    """`push_to_hub` of a sequence."""

    def test_each_generation_is_online_as_soon_as_it_is_finished(self, hub, tmp_path):
        with pytest.raises(family.Killed):
            family.train(tmp_path, callbacks=[family.KillAt(2, 1)], **PUBLISHED)
        assert list(hub.repositories) == GENERATIONS[:2]
        verify_lineage("ns/fam-gen1")
        seen = []
        family.train(tmp_path, report=lambda: seen.append(list(hub.repositories)), **PUBLISHED)
        assert seen == [GENERATIONS]  # a report is made before the family is published
        assert list(hub.repositories) == FAMILY
        verify_lineage("ns/fam")

    def test_what_could_not_be_published_is_refused_before_it_is_trained(self, tmp_path):
        with pytest.raises(ValueError, match=r"data\.source"):
            family.train(tmp_path, data={"source": "my scans"})
        assert not (tmp_path / "generation-0").exists()

    def test_what_was_missed_goes_up_with_the_next_generation(self, hub, tmp_path):
        class Back(TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                if args.output_dir.endswith("generation-2"):
                    hub.heal()

        seen = []
        options = {"callbacks": [Outage(hub, 1), Back()], **PUBLISHED}
        family.train(tmp_path, report=lambda: seen.extend(hub.repositories), **options)
        assert seen == GENERATIONS
        verify_lineage("ns/fam")

    def test_a_hub_that_goes_away_costs_no_training(self, hub, tmp_path, caplog):
        with pytest.raises(HubError, match="give the same command again"):
            family.train(tmp_path, callbacks=[Outage(hub, 1)], **PUBLISHED)
        assert "is not published yet" in caplog.text
        assert len(load_lineage(tmp_path).generations) == 3
        hub.heal()
        before = family.final_weights(tmp_path)
        family.train(tmp_path, **PUBLISHED)
        assert family.final_weights(tmp_path) == before
        verify_lineage("ns/fam")

    @pytest.mark.parametrize("name", ["ns/fam-gen1", "ns/fam"])
    @pytest.mark.parametrize("name_of_file", ["model.bin", "lineage.json"])
    def test_a_name_that_is_taken_is_refused_before_anything_is_trained(
        self, hub, tmp_path, name, name_of_file
    ):
        hub.commit(name, {name_of_file: b"theirs"}, "A model")
        what = "is published already" if name_of_file == "lineage.json" else "holds model"
        with pytest.raises(PublishError, match=f"{name} {what}"):
            family.train(tmp_path, **PUBLISHED)
        assert not (tmp_path / "generation-0").exists()

    def test_a_family_that_grows_asks_for_its_next_name_before_it_is_trained(self, hub, run):
        hub.commit("ns/fam-gen3", {"model.bin": b"theirs"}, "A model")
        with pytest.raises(PublishError, match=r"ns/fam-gen3 holds model"):
            family.train(run, generations=3, **PUBLISHED)
        assert not (run / "generation-3").exists()

    def test_a_server_that_ignores_private_is_found_out_before_anything_is_trained(
        self, hub, tmp_path
    ):
        hub.ignores_private = True
        with pytest.raises(PublishError, match="should be private"):
            family.train(tmp_path, hub_private_repo=True, **PUBLISHED)
        assert not (tmp_path / "generation-0").exists()


class TestGoingOn:
    """A second family, which continues a published generation."""

    @pytest.fixture
    def teacher(self, published) -> str:
        return load_lineage("ns/fam-gen2").places[2]

    def test_the_students_go_on_counting_and_name_their_teacher(self, published, teacher, tmp_path):
        out, again = tmp_path / "second", tmp_path / "again"
        lineage = family.train(out, generations=2, teacher=teacher, seed=5)
        assert [record.generation for record in lineage.generations] == [2, 3, 4]
        assert lineage.family == "second"
        (named,) = Record.read(out / "generation-3").teachers
        assert f"{named.repo_id}@{named.revision}" == teacher
        assert Record.read(out / "generation-4").teachers[0].path == "../generation-3"
        assert [m.generation for m in lineage.ensemble.members] == [3, 4]
        push_family(out, "ns/second")
        assert not {"ns/second-gen2", "ns/second-gen0"} & set(published.repositories)
        walked = verify_lineage("ns/second")
        assert [place.partition("@")[0] for place in walked.places.values()] == [
            *GENERATIONS,
            "ns/second-gen3",
            "ns/second-gen4",
            "ns/second",
        ]
        options = {"teacher": teacher, "seed": 5, "family": "second"}
        with pytest.raises(family.Killed):
            family.train(again, callbacks=[family.KillAt(4, 3)], **options)
        family.train(again, **options)
        assert family.final_weights(again) == family.final_weights(out)

    @pytest.mark.parametrize("number", [0, 2])
    def test_one_student_is_joined_by_its_teacher_which_is_not_published_again(
        self, published, tmp_path, number
    ):
        lineage = family.train(tmp_path, generations=1, teacher=f"ns/fam-gen{number}")
        assert [m.generation for m in lineage.ensemble.members] == [number, number + 1]
        commits = push_family(tmp_path, "ns/second")
        assert [c.repo_id for c in commits] == [f"ns/second-gen{number + 1}", "ns/second"]
        verify_lineage("ns/second")

    def test_a_branch_is_pinned_when_the_run_begins(self, published, tmp_path):
        family.train(tmp_path, generations=1, teacher="ns/fam-gen2")
        commit = published.repositories["ns/fam-gen2"].head
        published.commit("ns/fam-gen2", {"README.md": b"# New words"}, "New words")
        family.train(tmp_path, generations=2, teacher="ns/fam-gen2")
        assert Record.read(tmp_path / "generation-3").teachers[0].revision == commit
        with pytest.raises(ValueError, match="teacher: 'ns/fam-gen2@"):
            family.train(tmp_path, generations=2)  # none is another run
        with pytest.raises(ValueError, match=r"teacher: .* here"):
            family.train(tmp_path, generations=2, teacher="ns/fam-gen1")

    def test_a_teacher_of_an_earlier_attempt_is_not_taken_for_a_student(self, published, tmp_path):
        with pytest.raises(ValueError, match="classes"):
            family.train(tmp_path / "a", teacher="ns/fam-gen2", model_init=lambda generation: OTHER)
        others = published.repositories["ns/fam-gen2"].files()
        published.commit("ns/else-gen2", others, "The same files")
        for other in ("ns/fam-gen1", "ns/else-gen2", None):
            with pytest.raises(ValueError, match="was copied for another teacher"):
                family.train(tmp_path / "a", teacher=other)

    def test_images_of_another_normalisation_are_warned_of(self, published, tmp_path, caplog):
        data = family.views()
        other = type(data)(
            data.images, data.labels, data.label_names, mean=(0.4,) * 3, std=(1,) * 3
        )
        family.train(tmp_path / "a", generations=1, teacher="ns/fam-gen2")
        assert "may teach worse" not in caplog.text
        family.train(tmp_path / "b", generations=1, teacher="ns/fam-gen2", train_dataset=other)
        assert "may teach worse" in caplog.text

    @pytest.mark.parametrize("revision", ["v1", "commit"])
    def test_it_goes_on_though_the_hub_is_away(self, published, teacher, tmp_path, revision):
        named = teacher if revision == "commit" else f"ns/fam-gen2@{revision}"
        family.train(tmp_path / "a", generations=1, teacher=named)
        published.fail(1, "error", times=1_000_000)
        shutil.rmtree(tmp_path / "cache")
        lineage = family.train(tmp_path / "a", generations=2, teacher=named)
        assert len(lineage.generations) == 3

    def test_a_private_teacher_is_reached_with_the_runs_token(
        self, hub, never_killed, tmp_path, monkeypatch
    ):
        push_family(never_killed, "ns/fam", private=True)
        monkeypatch.setenv("HF_TOKEN", "")
        shutil.rmtree(tmp_path / "cache")
        family.train(tmp_path / "a", generations=1, teacher="ns/fam-gen2", hub_token="hf_ours")
        assert Record.read(tmp_path / "a" / "generation-3").teachers[0].repo_id == "ns/fam-gen2"

    def test_what_cannot_be_a_teacher_is_said(self, published, teacher, never_killed, tmp_path):
        del published.repositories["ns/fam-gen0"]
        shutil.rmtree(tmp_path / "cache")
        for named, error, words in (
            ("ns/fam", UnverifiableError, "ns/fam-gen0"),  # its lineage is gone
            (teacher, UnverifiableError, "ns/fam-gen0"),
            ("ns/none", UnverifiableError, "ns/none"),
            (str(never_killed / "ensemble"), ValueError, "is an ensemble"),
            (str(never_killed), ValueError, "is a family: name one of its generations"),
        ):
            with pytest.raises(error, match=words):
                family.train(tmp_path / "a", teacher=named)
        with pytest.raises(ValueError, match="generations=0"):
            family.train(tmp_path / "a", generations=0, teacher="ns/fam-gen2")
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]


class TestRecipe:
    """The command line from training to going on."""

    @pytest.fixture
    def draw(self):
        """A card's picture is that of the run."""
        return save_overview

    def test_from_training_to_going_on(self, hub, tmp_path):
        flags = "--smoke --use_cpu --push_to_hub --hub_model_id ns/digits --hub_private_repo"
        token = ["--hub-token", "hf_ours"]  # as argparse lets one write it
        run_recipe("ban_cifar", *flags.split(), *token, "--output_dir", tmp_path / "a")
        assert [repo.private for repo in hub.repositories.values()] == [True] * 4
        # The family's card shows what the run measured.
        results = family_rows(tmp_path / "a" / "results.json")
        card = hub.repositories["ns/digits"].files()["README.md"].decode()
        assert f"{results['ensembles'][0]['test']['error']:.2f}" in card
        picture = hub.repositories["ns/digits"].files()["results.png"]
        assert picture == (tmp_path / "a" / "results.png").read_bytes()
        # No token is in any file.
        files = [path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()]
        for repo in hub.repositories.values():
            files += repo.files().values()
        assert not [content for content in files if b"hf_ours" in content]
        assert "--hub-token ..." in (tmp_path / "a" / "results.md").read_text("utf-8")
        # Another run goes on from a commit.
        teacher = load_lineage("ns/digits-gen2").places[2]
        flags = "--smoke --use_cpu --generations 1 --push_to_hub --hub_model_id ns/second"
        options = ["--teacher", teacher, "--output_dir", tmp_path / "b", "--seed", "7"]
        run_recipe("ban_cifar", *flags.split(), *options)
        assert [r.generation for r in verify_lineage("ns/second").generations] == [0, 1, 2, 3]
        assert hub.repositories["ns/second-gen3"].private  # as its teacher is
        with pytest.raises(SystemExit, match="control and control_from compare with generation 0"):
            run_recipe("ban_cifar", *flags.split(), *options, "--control")
