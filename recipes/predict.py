"""Label a folder of images with a finished classifier, write the masks of a finished segmenter, or keep features.

    python recipes/predict.py --model outputs/digits_fixmatch --dataset path/to/images
    python recipes/predict.py --model outputs/digit_scenes --dataset path/to/images --overlays
    python recipes/predict.py embed --model outputs/mine --dataset path/to/images

The folder --output_dir then holds predictions.parquet and predictions.csv, masks/, or embeddings.parquet, and
skipped.csv with the images that could not be read. Started again with the same settings, an unfinished run continues
where it was. docs/predict.md says what the columns are.

Every setting is one flat key: defaults < --config file < command line; --help lists them.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

import sys

from tpssl_hf.config.parser import parse_config, take
from tpssl_hf.tasks.predict.config import EmbedConfig, PredictConfig
from tpssl_hf.tasks.predict.run import embed, predict


def main() -> int:
    """Apply the model and say where the answers are; returns the exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["embed"]:
        result = embed(take(EmbedConfig, parse_config([EmbedConfig], arguments[1:], description=__doc__ or "")))
    else:
        result = predict(take(PredictConfig, parse_config([PredictConfig], arguments, description=__doc__ or "")))
    print(f"{result.images:,} images, {result.skipped:,} that could not be read: {result.path}")
    return 0


if __name__ == "__main__":
    run_cli(main)
