"""Adapt a pretrained timm backbone to your own images, then finetune it with few labels.

The public functions take the keys of the commands as keyword arguments (``tpssl-hf COMMAND --help`` lists them)::

    run = tpssl_hf.pretrain(dataset="photos", backbone="resnet50.a1_in1k", init="timm", output_dir="outputs/mine")
    classifier = tpssl_hf.finetune_classifier(dataset="photos", labels="labels.csv", init=run)
    table = tpssl_hf.predict(classifier, "more_photos")
"""

import importlib
from typing import TYPE_CHECKING, Any

from tpssl_hf import _auto_registration as _auto_registration

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tpssl_hf.commands.classify import finetune_classifier
    from tpssl_hf.commands.embed import embed
    from tpssl_hf.commands.pick_labels import pick_labels
    from tpssl_hf.commands.predict import predict
    from tpssl_hf.commands.pretrain import pretrain
    from tpssl_hf.commands.segment import finetune_segmenter
    from tpssl_hf.commands.verdict import verdict

_MODULES = {  # function -> module; imported when used, so that `import tpssl_hf` does not load torch
    "pretrain": "pretrain",
    "finetune_classifier": "classify",
    "finetune_segmenter": "segment",
    "predict": "predict",
    "embed": "embed",
    "verdict": "verdict",
    "pick_labels": "pick_labels",
}
__all__ = ["embed", "finetune_classifier", "finetune_segmenter", "pick_labels", "predict", "pretrain", "verdict"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.commands.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
