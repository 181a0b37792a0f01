"""Adapt a backbone to your own images, without labels: Φ_pre → target pretraining → Φ_T (paper §III-B, Eq. 3).

    accelerate launch recipes/target_pretrain.py
    accelerate launch recipes/target_pretrain.py --dataset path/to/images --init timm --backbone resnet18.tv_in1k
    accelerate launch recipes/target_pretrain.py --config recipes/configs/target_pretrain/cifar10_byol_paper.yaml

The same as `tpssl-hf pretrain`, for `accelerate launch` with a configuration of your own; --help lists every key.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

from tpssl_hf.commands.pretrain import main

if __name__ == "__main__":
    run_cli(main)
