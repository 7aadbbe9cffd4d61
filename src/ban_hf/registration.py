"""Makes the Auto classes of transformers know our models, without importing transformers.

`AutoConfig` learns of our configs right after transformers has loaded it, and the `AutoModelFor...`
classes of our models right after theirs. Where transformers is loaded already, this happens at once.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: What is imported after which module of transformers; both register themselves.
AFTER = {
    "transformers.models.auto.configuration_auto": "ban_hf.models.configuration",
    "transformers.models.auto.modeling_auto": "ban_hf.models.registration",
}


def register_with_transformers() -> None:
    """Register our classes now, as far as transformers is loaded, and the rest when it is."""
    for theirs, ours in AFTER.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
    sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Finds the modules in `AFTER` as the other finders do, and adds our step to their loading."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname not in AFTER:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, AFTER[fullname])
        return spec


class _ThenRegister(Loader):
    """Loads a module as its own loader does, then imports one of ours."""

    def __init__(self, loader: Loader, ours: str) -> None:
        self.loader, self.ours = loader, ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(self.ours)
