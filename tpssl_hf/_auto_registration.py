"""Make our segmenter known to the Auto classes and pipelines of transformers.

Recipes set the process up before torch is loaded, so the package cannot load transformers itself. Importing this
module registers the segmenter as soon as transformers loads its Auto classes, or at once where they are loaded.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Several steps, because AutoConfig may be used alone, and may be loaded while PreTrainedModel is only half loaded.
_REGISTERED_AFTER = {
    "transformers.models.auto.configuration_auto": "tpssl_hf.models.segmenter_config",
    "transformers.models.auto.image_processing_auto": "tpssl_hf.models.segmenter_processor",
    "transformers.models.auto.modeling_auto": "tpssl_hf.models.segmenter",
}


class _RegisterAfterLoading(MetaPathFinder):
    """Imports our module, which registers itself, right after the module of transformers it registers with."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = _REGISTERED_AFTER.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if ours else None
        if not ours or not spec or not spec.loader:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            importlib.import_module(ours)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _RegisterAfterLoading())
for _theirs, _ours in _REGISTERED_AFTER.items():
    if _theirs in sys.modules:
        importlib.import_module(_ours)
