"""Analyze what target pretraining has changed (paper §IV-E; Tables VI and VII, Fig. 3, 4, 5).

    python recipes/analyze.py                                           # the default target pretraining of the digits
    python recipes/analyze.py --adapted outputs/mine                    # clusters, t-SNE and drift of a run of yours
    python recipes/analyze.py --analysis steps --run outputs/mine       # accuracy of each kept checkpoint
    python recipes/analyze.py --analysis transfer --runs 'outputs/finetuned/*'
    python recipes/analyze.py --analysis convergence --runs outputs/one,outputs/two

The same as `tpssl-hf analyze`; the work is in tpssl_hf/commands/analyze.py.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

from tpssl_hf.commands.analyze import main

if __name__ == "__main__":
    run_cli(main)
