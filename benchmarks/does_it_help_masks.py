r"""Does adapting help with few masks? Segmenters from base and from PixPro-adapted weights, beside supervised.

    python benchmarks/does_it_help_masks.py --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data nuclei=path/to/nuclei --masks 10 --starts base,adapted --learners supervised,cutmix

A cell is a pair of weights and data. Each learner is finetuned with the settings of `tpssl-hf segment --budget` on a
CPU: 4 images with masks a step, crops of 128 pixels, a decoder 64 wide. Mean IoU is that of whole test images, by the
last network. Masks are drawn by label seed, the same for every row; differences are paired by it. A run that is there
is not made again. Another length or size of the images than the first ones is a cell of its own.
`python benchmarks/does_it_help.py page` writes the page.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    prepare_process()

from cells import EVIDENCE, read_cell, read_pair, write_cell

import tpssl_hf

FIRST_STEPS, FIRST_SIDE = 400, 256
SIZES = {"crop_height": 128, "crop_width": 128, "decoder_width": 64, "batch_size": 4}


def main() -> None:
    """Make what is missing of each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", required=True, nargs="+", help="NAME=DATASET")
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--starts", default="base", help="of base, bn_only, adapted, with commas")
    parser.add_argument("--learners", default="supervised,cutmix", help="with commas")
    parser.add_argument("--seeds", type=int, default=5, help="label seeds")
    parser.add_argument("--max_steps", type=int, default=FIRST_STEPS, help="of each finetuning")
    parser.add_argument("--adapt_steps", type=int, default=100, help="of PixPro, of 32 images at 128 pixels")
    parser.add_argument("--shorter_side", type=int, default=FIRST_SIDE)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of everything")
    parser.add_argument("--work_dir", default="outputs/does_it_help_masks")
    arguments = parser.parse_args()
    for data in arguments.data:
        run_cell(data, arguments)


def run_cell(data: str, arguments: argparse.Namespace) -> None:
    """Finetune each learner from each start with each label seed, and write the cell after each."""
    pair = read_pair(arguments.weights, data)
    name = f"{pair.weights}_{pair.data}_{arguments.masks}"
    if (arguments.max_steps, arguments.shorter_side) != (FIRST_STEPS, FIRST_SIDE):
        name += f"_{arguments.max_steps}x{arguments.shorter_side}"
    file, folder = EVIDENCE / f"masks_{name}.json", Path(arguments.work_dir) / name
    cell = read_cell(file)
    cell |= {
        "weights": pair.weights,
        "data": pair.data,
        "masks": arguments.masks,
        "steps": arguments.max_steps,
        "shorter_side": arguments.shorter_side,
        "precision": arguments.precision,
    }
    cell.setdefault("learners", {})
    shared = {"backbone": pair.architecture, "dataset": pair.dataset, "precision": arguments.precision}
    shared["cache_dir"] = f"{arguments.work_dir}/cache"
    for start in arguments.starts.split(","):
        weights = STARTS[start]({**shared, "init": pair.init}, arguments, folder, cell)
        for seed, learner in itertools.product(range(1, arguments.seeds + 1), arguments.learners.split(",")):
            done = cell["learners"].setdefault(f"{learner} from {start}", {})
            if str(seed) in done:
                continue
            began = time.process_time()
            run = tpssl_hf.finetune_segmenter(
                **shared,
                **SIZES,
                init=weights,
                method=learner,
                labels=arguments.masks,
                label_seed=seed,
                max_steps=arguments.max_steps,
                unlabeled_ratio=0 if learner == "supervised" else 2,
                shorter_side=arguments.shorter_side,
                output_dir=folder / f"{learner}_{start}_{seed}",
            )
            results = run.results
            done[str(seed)] = {
                "mean_iou": results["metrics"]["mean_iou"],
                "cpu_seconds": time.process_time() - began,
            }
            cell |= {"machine": results["machine"], "versions": results["versions"]}
            write_cell(file, cell)


def base(shared: dict[str, Any], arguments: argparse.Namespace, folder: Path, cell: dict[str, Any]) -> str:
    """Return the weights as they came."""
    return str(shared["init"])


def bn_only(shared: dict[str, Any], arguments: argparse.Namespace, folder: Path, cell: dict[str, Any]) -> str:
    """Give the weights the BatchNorm statistics of the images, by a step of rate 0; return their folder."""
    run = tpssl_hf.pretrain(
        **shared,
        method="pixpro",
        image_size=128,
        batch_size=32,
        max_steps=1,
        base_learning_rate=0.0,
        backbone_batchnorm="train",
        select="last",
        output_dir=folder / "bn_only",
    )
    return str(run.model_path)


def adapted(shared: dict[str, Any], arguments: argparse.Namespace, folder: Path, cell: dict[str, Any]) -> str:
    """Adapt by PixPro without labels; return the folder of the weights."""
    began = time.process_time()
    run = tpssl_hf.pretrain(
        **shared,
        method="pixpro",
        image_size=128,
        batch_size=32,
        max_steps=arguments.adapt_steps,
        output_dir=folder / "adapted",
    )
    if "adapted_cpu_minutes" not in cell:
        cell["adapted_cpu_minutes"] = (time.process_time() - began) / 60
        cell["saved"] = run.results["saved"]["candidate"]
    return str(run.model_path)


STARTS = {"base": base, "bn_only": bn_only, "adapted": adapted}

if __name__ == "__main__":
    main()
