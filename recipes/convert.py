"""Turn weights from elsewhere into timm's two files, which --init, timm and transformers load.

    python recipes/convert.py moco_v2_800ep_pretrain.pth.tar --backbone resnet50 --output_dir outputs/moco_v2

The same as `tpssl-hf convert`; --help says more.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

from tpssl_hf.commands.convert import main

if __name__ == "__main__":
    run_cli(main)
