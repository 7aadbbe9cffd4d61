"""The package's structure: imports point one way, and recipes use public names."""

import ast
from functools import cache
from pathlib import Path

import ban_hf

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ban_hf"
MAX_FILE_LINES = 600
MAX_FLOORS = 8
#: What a package or module may import: those on a lower floor, and itself.
FLOORS = {
    **dict.fromkeys(("errors", "objectives", "lineage", "data", "models"), 0),
    "tasks": 1,
    "training": 2,
    **dict.fromkeys(("jobs", "reports"), 3),
    "hub": 4,
    "sequence": 5,
    "families": 6,
    "cli": 7,
    "registration": 7,  # by name alone, when transformers asks
}
#: Within the lowest floor.
BASE = {
    "objectives": {"errors", "lineage"},
    "lineage": {"errors"},
    "data": {"errors"},
    "models": {"errors"},
}


def imports(path: Path) -> set[str]:
    """The modules of ban_hf that a file imports anywhere, `from ban_hf import x` as ban_hf.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(SOURCE.parent).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else module for name in names}
    return {name for name in found if name.split(".")[0] == "ban_hf"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def longest_chain() -> tuple[int, list[str]]:
    """The number of floors of the import graph, and the cycles in it."""
    floors, cycles = {}, []

    def floor(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            cycles.append(" -> ".join([*above[above.index(name) :], name]))
            return 0
        if name not in floors:
            below = imports(modules()[name]) & modules().keys() - {name, "ban_hf"}
            floors[name] = 1 + max((floor(each, (*above, name)) for each in below), default=0)
        return floors[name]

    for name in modules():
        if name != "ban_hf":
            floor(name, ())
    return max(floors.values()), cycles


def test_the_longest_chain_of_imports_is_short_and_has_no_cycle():
    floors, cycles = longest_chain()
    assert cycles == []
    assert floors <= MAX_FLOORS


def test_imports_point_to_a_lower_floor():
    wrong = []
    for name, path in modules().items():
        here = name.split(".")[1] if "." in name else "__init__"
        for other in imports(path) - {"ban_hf"} if here != "__init__" else ():
            there = other.split(".")[1]
            below = FLOORS[there] < FLOORS[here] or there in BASE.get(here, ())
            if here != there and not below:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_files_hold_one_idea():
    long = {
        name: n
        for name, p in modules().items()
        if (n := len(p.open().readlines())) > MAX_FILE_LINES
    }
    assert not long


def test_recipes_import_public_names_only():
    allowed = {"ban_hf", *(f"ban_hf.{name}" for name in ban_hf.__all__)}
    for path in sorted((ROOT / "recipes").glob("*.py")):
        assert imports(path) <= allowed, path
