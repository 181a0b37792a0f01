"""Publish a finished run on the Hugging Face Hub: weights, processor, keys, results, curves and a model card.

    python recipes/publish.py outputs/digits --repo me/digits --license apache-2.0

The same as `tpssl-hf publish`; --help says more.
"""

from tpssl_hf.commands.publish import main
from tpssl_hf.process import run_cli

if __name__ == "__main__":
    run_cli(main)
