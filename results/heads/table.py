"""Write the table of README.md from the results of the runs: `python results/heads/table.py`."""

from pathlib import Path

from ban_hf.lineage.results import Column, Results
from ban_hf.reports.reading import read_results
from ban_hf.reports.statistics import spread
from ban_hf.reports.tables import cell, escaped, table

HERE = Path(__file__).parent
README, BEGIN, END = HERE / "README.md", "<!-- table.py -->\n\n", "\n\n<!-- end -->"
#: Of a network or an ensemble, by its kind and the number of its members.
KINDS = {
    "generation 0": ("labels", 1),
    "BAN-1": ("student", 1),
    "BAN-2": ("student", 1),
    "their ensemble": ("ensemble", 2),
    "control": ("control", 1),
    "ensemble of controls": ("control", 2),
}


def summary() -> str:
    """A run a line: the leading test metric of each network and ensemble."""
    lines, commands = [], []
    for path in sorted(HERE.glob("*/results.json")):
        results, name = read_results([path]), path.parent.name
        digits = results.measure.leading.digits
        values = []
        for heading, kind in KINDS.items():
            found = [c for c in results.columns if (c.kind, c.size) == kind]
            column = found[heading == "BAN-2"]
            values.append(cell(_measured(results, column), digits))
        n = max(entry.test["n"] or 0 for entry in results.entries)
        better = "higher" if results.measure.leading.greater_is_better else "lower"
        facts = [f"[{name}]({name}/results.md)", f"{results.measure.leading.heading} ({better})"]
        seeds = ", ".join(map(str, results.seeds))
        lines.append([*facts, f"{n:,} {results.measure.items}", seeds, *values])
        commands.append(f"{results.command}  # {results.hardware}")
    made = table(["run", "metric (better)", "n", "seed", *KINDS], lines, words=4)
    return f"{escaped(made)}\n\n```bash\n" + "\n".join(commands) + "\n```"


def _measured(results: Results, column: Column) -> object:
    entries = results.measured("family", column.name).values()
    return spread(entry.value(results.metric) for entry in entries)


if __name__ == "__main__":
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}{summary()}{END}{after}", "utf-8")
