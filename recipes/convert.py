r"""Turn weights from elsewhere into timm's two files, which --init, timm and transformers load.

    python recipes/convert.py moco_v2_800ep_pretrain.pth.tar --backbone resnet50 --output_dir outputs/moco_v2
    python recipes/convert.py checkpoint.pth --backbone vit_small_patch16_224 --branch student --output_dir mine
    python recipes/convert.py efficientnet-lite0.pth --backbone tf_efficientnet_lite0 --by_order --mean 0.5 --std 0.5 \
        --license apache-2.0 --output_dir outputs/lite0

The network is looked for by the names and shapes of its tensors, whatever stands before the names; docs/convert.md
lists the families. Heads, projectors, predictors and queues are left out. A part of the network that is not in the
file, or a part of the file that is not in the network, is refused. Nothing in the file is run: it is read as tensors
only. The folder is loaded back and its features are compared before it takes its place.

Every setting is one flat key: defaults < --config file < command line; --help lists them.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

import sys

from tpssl_hf.config.parser import parse_config, take
from tpssl_hf.convert.config import ConvertConfig
from tpssl_hf.convert.run import convert


def main() -> int:
    """Convert one file and say what was found; returns the exit code."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--weights", *arguments]
    settings = parse_config([ConvertConfig], arguments, description=__doc__ or "")
    print("\n".join(convert(take(ConvertConfig, settings)).lines))
    return 0


if __name__ == "__main__":
    run_cli(main)
