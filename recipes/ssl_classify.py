"""Finetune a classifier with few labels and many images (paper §III-A, Eq. 4; Tables I, V, VI).

    accelerate launch recipes/ssl_classify.py
    accelerate launch recipes/ssl_classify.py --dataset path/to/images --labels labels.csv --init outputs/mine/model
    accelerate launch recipes/ssl_classify.py --config recipes/configs/ssl_classify/cifar10_40_fixmatch.yaml

The same as `tpssl-hf classify`, for `accelerate launch` with a configuration of your own; --help lists every key.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

from tpssl_hf.commands.classify import main

if __name__ == "__main__":
    run_cli(main)
