"""The package stays what a reader sees in one minute: layers, and short files and functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ban_hf"
MODULES = sorted(SOURCE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))

# A module or sub-package imports strictly lower layers only (and its own sub-package).
LAYERS = {
    "objectives": 0,
    "metrics": 0,
    "lineage": 0,
    "errors": 0,
    "data": 0,
    "models": 0,
    "cost": 0,
    "heads": 0,
    "results": 0,
    "axis": 0,
    "callbacks": 1,
    "training_args": 1,
    "items": 1,
    "comparison": 1,
    "ensemble": 1,
    "model_card": 1,
    "facts": 1,
    "plotting": 1,
    "network": 1,
    "record_form": 1,
    "public_record": 1,
    "terminal": 1,
    "recipe": 2,
    "diagnosis": 2,
    "teacher": 2,
    "recurrence": 2,
    "measurement": 2,
    "places": 2,
    "repository": 2,
    "report": 2,
    "precision": 2,
    "teacher_cache": 2,
    "provenance": 3,
    "image_format": 3,
    "step_loss": 3,
    "teaching": 3,
    "trainer": 4,
    "cards": 4,
    "members": 4,
    "hub": 5,
    "pace": 5,
    "pulling": 5,
    "publisher": 6,
    "continuation": 6,
    "generation": 6,
    "tasks": 6,
    "run": 7,
    "generations": 8,
    "caching": 8,
    "aggregate": 9,
    "commands": 14,
    "evaluation": 9,
    "family": 10,
    "siblings": 11,
    "plan": 12,
    "image_family": 13,
    "language_family": 13,
    "paper": 13,
    "cli": 15,
    "__init__": 14,
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 45


def part(path: Path) -> str:
    """The module or sub-package of ban_hf that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """The modules of ban_hf that a file imports anywhere, `from ban_hf import x` as ban_hf.x."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(SOURCE.parent).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            alone = module == "ban_hf"
            found += [f"ban_hf.{alias.name}" for alias in node.names] if alone else [module]
    return [name for name in found if name.split(".")[0] == "ban_hf"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_to_a_lower_layer(path):
    here = part(path)
    assert here in LAYERS, f"give {here} a layer"
    for name in imports(path):
        there = name.split(".")[1]
        assert there in LAYERS, f"{here} imports {name}: name the module it comes from"
        assert there == here or LAYERS[there] < LAYERS[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_import_public_names_only(path):
    public = public_names()
    for name in imports(path):
        names = name.split(".")
        assert names == ["ban_hf"] or (len(names) == 2 and names[1] in public), name


def public_names() -> list[str]:
    """The value of `__all__`, read without importing the package."""
    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    return next(
        ast.literal_eval(node.value)
        for node in assignments
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )


@pytest.mark.parametrize("path", MODULES + RECIPES, ids=name_of)
def test_no_import_is_for_types_alone(path):
    assert "TYPE_CHECKING" not in path.read_text("utf-8")


@pytest.mark.parametrize("path", MODULES + RECIPES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of_code(node) <= MAX_FUNCTION_LINES, node.name


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring left out: what is explained well is not long."""
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length
