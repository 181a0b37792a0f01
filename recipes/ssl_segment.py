"""Finetune a segmenter with few masks and many images (paper §III-A, Eq. 4; Tables II, III, IV).

    accelerate launch recipes/ssl_segment.py
    accelerate launch recipes/ssl_segment.py --dataset path/to/folder --labels 5% --init outputs/mine/model
    accelerate launch recipes/ssl_segment.py --config recipes/configs/ssl_segment/voc_1pct_cutmix_paper.yaml

The same as `tpssl-hf segment`, for `accelerate launch` with a configuration of your own; --help lists every key.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

from tpssl_hf.commands.segment import main

if __name__ == "__main__":
    run_cli(main)
