"""Did adapting help? Compare adapted weights with what they were adapted from, on your images and your few labels.

    python recipes/verdict.py                                       # the digits of the default target pretraining
    python recipes/verdict.py --base timm --adapted outputs/mine --dataset path/to/images --labels labels.csv
    python recipes/verdict.py --base random --adapted outputs/one,outputs/two --dataset cifar10 --image_size 64

The same as `tpssl-hf verdict`; the work is in tpssl_hf/commands/verdict.py.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

from tpssl_hf.commands.verdict import main

if __name__ == "__main__":
    run_cli(main)
