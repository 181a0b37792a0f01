r"""Turn weights from elsewhere into timm's two files, which --init, timm and transformers load.

    tpssl-hf convert moco_v2_800ep_pretrain.pth.tar --backbone resnet50 --output_dir outputs/moco_v2
    tpssl-hf convert checkpoint.pth --backbone vit_small_patch16_224 --branch student --output_dir mine
    tpssl-hf convert efficientnet-lite0.pth --backbone tf_efficientnet_lite0 --by_order --mean 0.5 --std 0.5 \
        --license apache-2.0 --output_dir outputs/lite0
    python recipes/convert.py FILE ...   # the same without installing

The network is looked for by the names and shapes of its tensors, whatever stands before the names; docs/convert.md
lists the families. Heads, projectors, predictors and queues are left out. A part of the network that is not in the
file, or a part of the file that is not in the network, is refused. Nothing in the file is run: it is read as tensors
only. The folder is loaded back and its features are compared before it takes its place.

Keys: defaults < --config file < command line; --help lists them.
"""

import sys
from collections.abc import Sequence

from tpssl_hf.config.parser import parse_args
from tpssl_hf.convert.config import ConvertArgs
from tpssl_hf.convert.run import convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one file and say what was found; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        given = ["--weights", *given]
    print("\n".join(convert(parse_args(ConvertArgs, given, description=__doc__ or "").convert).lines))
    return 0
