"""Makes transformers and timm know our models, without importing either.

`AutoConfig` learns of our configs right after transformers has loaded it, and the `AutoModelFor...`
classes of our models right after theirs; timm of our networks for small images. Where they are
loaded already, this happens at once.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Modules of ours that register their classes, by the module of theirs that they need.
AFTER = {
    "transformers.models.auto.configuration_auto": ("ban_hf.models.configuration",),
    "transformers.models.auto.modeling_auto": (
        "ban_hf.models.registration",
        "ban_hf.training.ensemble",
    ),
    "timm.models": ("ban_hf.models.presets",),
}


def register() -> None:
    """Register our classes now with what is loaded, and with the rest when it is."""
    for theirs in AFTER:
        if theirs in sys.modules:
            _register(theirs)
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
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            if module.__name__ == fullname:  # the loader of an archive loads others too
                _register(fullname)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _register(theirs: str) -> None:
    for ours in AFTER[theirs]:
        importlib.import_module(ours)
