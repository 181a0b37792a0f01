r"""Do small crops help MoCo adapt? Queries from one large crop, or from that and two small ones of half the side.

    python benchmarks/multi_crop.py --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data eurosat=path/to/eurosat

Multi-crop is SwAV's (Caron et al., 2020, arXiv 2006.09882, section 3.3): small crops of 5 to 20 % of an image must
find the key of its large one as well. `tpssl_hf.pretrain` adapts without labels with MoCo's defaults, without small
crops, with them in as many steps, and with them in as much CPU time. Then a probe gets four labels of each class of
the training images and is asked about the other training images; the test split is not read. Differences are paired
by label draw, with a 95 % interval of Student's t over them.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    prepare_process()

from cells import BATCH_SIZE, Pair, read_pair
from evidence_page import mean_of, paired
from torch import Tensor
from which_layers import asked

import tpssl_hf
from tpssl_hf.augment.pretrain_views import MOCO_VIEW, ViewSettings, make_view
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.losses.contrastive import info_nce
from tpssl_hf.methods.base import Batch, Losses, Views
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.moco import SPEC as PLAIN
from tpssl_hf.methods.pretrain.moco import MoCo, MoCoConfig

SMALL = replace(MOCO_VIEW, crop_scale=(0.05, 0.2))
SMALL_CROPS = (11, 12)  # numbers of views, for draws of their own


class MultiCropMoCo(MoCo):
    """MoCo whose small crops are queries too, of the same keys and with the same weight each."""

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return MoCo's losses, with the mean over all crops as ``loss``."""
        negatives = self.queue.keys.clone()
        losses = super().forward(batch, progress)
        (keys,) = self._new_keys
        small = [
            info_nce(self.projector(self.backbone(crop)), keys, negatives, self.config.temperature)
            for name, crop in batch["images"].items()
            if name.startswith("small")
        ]
        return {**losses, "loss": (losses["loss"] + sum(small)) / (1 + len(small))}


def views(settings: ViewSettings, config: MoCoConfig) -> Views:
    """Return MoCo's views, and small crops of half the side."""
    small = replace(settings, image_size=settings.image_size // 2)
    plain = PLAIN.views(settings, config)["images"]

    def all_crops(images: ImageBatch) -> dict[str, Tensor]:
        crops = {f"small{number}": make_view(images, SMALL, small, view=number)[0] for number in SMALL_CROPS}
        return {**plain(images), **crops}

    return {"images": all_crops}


MULTI_CROP = replace(PLAIN, build=MultiCropMoCo, views=views)


def main() -> None:
    """Adapt each way, ask training labels, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", required=True, nargs="+", help="NAME=DATASET")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--limit_images", type=int, default=10000)
    parser.add_argument("--work_dir", default="outputs/multi_crop")
    arguments = parser.parse_args()
    print("| data | small crops | steps | probe % | minus base | minus none | CPU minutes |")
    print("|---|---|---|---|---|---|---|")
    for data in arguments.data:
        pair = read_pair(arguments.weights, data)
        base = asked(pair.architecture, pair.init, pair.dataset, arguments)
        print(f"| {pair.data} | base | | {mean_of(base)} | | | |", flush=True)
        plain, minutes = adapted(pair, PLAIN, arguments.max_steps, arguments)
        print(row(pair, "none", arguments.max_steps, base, plain, plain, minutes), flush=True)
        small, longer = adapted(pair, MULTI_CROP, arguments.max_steps, arguments)
        print(row(pair, "two", arguments.max_steps, base, plain, small, longer), flush=True)
        steps = round(arguments.max_steps * minutes / longer)
        small, longer = adapted(pair, MULTI_CROP, steps, arguments)
        print(row(pair, "two", steps, base, plain, small, longer), flush=True)


def adapted(pair: Pair, spec: Any, steps: int, arguments: argparse.Namespace) -> tuple[list[float], float]:
    """Adapt; return what training labels say of the last network, and CPU minutes."""
    began = time.process_time()
    name = f"{pair.weights}_{pair.data}_{spec.build.__name__}_{steps}"
    with mock.patch.dict(PRETRAIN, moco=spec):
        run = tpssl_hf.pretrain(
            backbone=pair.architecture,
            init=pair.init,
            dataset=pair.dataset,
            method="moco",
            select="last",
            precision=arguments.precision,
            batch_size=BATCH_SIZE,
            max_steps=steps,
            image_size=arguments.image_size,
            limit_images=arguments.limit_images,
            cache_dir=f"{arguments.work_dir}/cache",
            output_dir=Path(arguments.work_dir) / name,
        )
    minutes = (time.process_time() - began) / 60
    return asked(pair.architecture, str(run.model_path), pair.dataset, arguments), minutes


def row(
    pair: Pair, kind: str, steps: int, base: list[float], plain: list[float], found: list[float], minutes: float
) -> str:
    """Return a row of the table."""
    against = "" if found is plain else paired(plain, found)
    return f"| {pair.data} | {kind} | {steps} | {mean_of(found)} | {paired(base, found)} | {against} | {minutes:.1f} |"


if __name__ == "__main__":
    main()
