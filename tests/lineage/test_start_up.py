"""Records and the Hub are read without torch, in about a second."""

import subprocess
import sys
from pathlib import Path

import pytest

import ban_hf

HEAVY = {"torch", "transformers", "datasets", "timm", "matplotlib", "jinja2"}
MODULES = "hub.publishing hub.download hub.verification lineage.environment lineage.family".split()


@pytest.mark.parametrize(
    "use", ["", "load_lineage(RUN)", "verify_lineage(RUN)", "full_name('ns/family')"]
)
def test_what_push_pull_and_verify_use_loads_no_torch(use):
    run = Path(__file__).parent / "v1" / "run"
    program = f"""
import importlib, sys, types
package = types.ModuleType("ban_hf")  # without what its own __init__ imports
package.__path__ = [{str(Path(ban_hf.__file__).parent)!r}]
sys.modules["ban_hf"] = package
for name in {MODULES!r}:
    importlib.import_module(f"ban_hf.{{name}}")
from ban_hf.hub.publishing import full_name
from ban_hf.hub.verification import load_lineage, verify_lineage
RUN = {str(run)!r}
{use}
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
