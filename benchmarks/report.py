"""What every benchmark says and writes: options, conditions, a table, the numbers, a figure."""

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from ban_hf.lineage.environment import hardware, versions
from ban_hf.training.performance import computes_bfloat16

matplotlib.use("Agg")
RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("runs") / "benchmarks"  # which git ignores
BLUE, GREY, ORANGE = "#1f77b4", "#9aa0a6", "#e07b39"


def parser(doc: str, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--rounds", type=int, default=rounds, help="times that forms take turns")
    options.add_argument(
        "--quick", action="store_true", help="a run of seconds that tries the code"
    )
    options.add_argument(
        "--output", type=Path, help="folder; benchmarks/results, with --quick runs/benchmarks"
    )
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; quick ones are few and elsewhere."""
    given = options.parse_args()
    given.command = command(Path(options.prog).stem, given, options)
    if given.output is None:
        given.output = QUICK_RESULTS if given.quick else RESULTS
    if given.quick:
        given.rounds = 1
    return given


def command(script: str, given: argparse.Namespace, options: argparse.ArgumentParser) -> str:
    """How to make it again: the options that are not as by default, without the folder."""
    words = ["python", "-m", f"benchmarks.{script}"]
    for option, value in vars(given).items():
        if option == "output" or value == options.get_default(option):
            continue
        words.append(f"--{option}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def device() -> torch.device:
    """Where everything runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """The machine in the name of a file."""
    if device().type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name().lower()).strip("_")


def conditions() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "hardware": hardware(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": computes_bfloat16(device()),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def processor() -> str:
    """The processor's own name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else "unknown processor"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, words: int = 1) -> str:
    """A Markdown table, its first columns of words and the others of numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def spread(low: float, high: float, digits: int = 2) -> str:
    """Two quartiles."""
    return f"{low:.{digits}f}–{high:.{digits}f}"


def write(
    name: str,
    options: argparse.Namespace,
    title: str,
    parts: Sequence[str],
    data: Mapping[str, Any],
    figure: Figure | None = None,
) -> None:
    """Print a report, and put it beside its numbers and its figure."""
    known, file = conditions(), f"{name}_{machine()}"
    packages = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
    has_bfloat16 = "with" if known["bfloat16"] else "without"
    where = (
        f"{known['hardware']}: {known['processor']}, {known['instructions']}, {has_bfloat16} "
        f"bfloat16 instructions, {known['threads']} threads. {packages}."
    )
    picture = [f"![{title}]({file}.png)"] if figure else []
    made = f"```bash\n{options.command}\n```"
    text = "\n\n".join([f"# {title}", *picture, *parts, where, made]) + "\n"
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{file}.md").write_text(text, "utf-8")
    numbers = json.dumps({"conditions": known, "command": options.command, **data}, indent=1)
    (options.output / f"{file}.json").write_text(numbers + "\n", "utf-8")
    if figure:
        figure.savefig(options.output / f"{file}.png", dpi=150)
