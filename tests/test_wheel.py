"""The wheel holds the whole package, templates included, and works from where it is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLES = [*(ROOT / "recipes" / "paper").glob("*.*")]
RENDER = """
import ban_hf, ban_hf.reports.model_card
assert ban_hf.__file__.startswith({target!r}), ban_hf.__file__
lineage = dict(
    kind="generation", family="family", generation=0, teacher=None, members=[], objective=None,
    architecture={{"model_type": "m", "class": "C", "num_parameters": 1}}, seed={{"seed": 0}},
    data={{}}, training={{}}, metrics=[], code={{}},
)
print(ban_hf.reports.model_card.render_card(lineage))
"""


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of what a wheel is built from: the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    single = [ROOT / name for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE")]
    for path in [*single, *files(ROOT / "src" / "ban_hf"), *files(ROOT / "model_cards"), *TABLES]:
        copy = folder / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    run(sys.executable, "-m", "pip", "wheel", *options, str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_template_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    package = ROOT / "src" / "ban_hf"
    templates = (ROOT / "model_cards").glob("*.*")
    assert TABLES
    assert names == {
        *(f"ban_hf/{path.relative_to(package).as_posix()}" for path in files(package)),
        *(f"ban_hf/model_cards/{path.name}" for path in templates),
        *(f"ban_hf/paper_tables/{path.name}" for path in TABLES),
    }


def test_an_installed_wheel_renders_a_card_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    target = str(tmp_path / "installed")
    # Isolated from the environment and the working directory; the wheel comes before site-packages.
    code = f"import sys; sys.path.insert(0, {target!r})" + RENDER.format(target=target)
    card = run(sys.executable, "-I", "-c", code, cwd=tmp_path)
    assert "# family, generation 0" in card
    assert "library_name: transformers" in card
