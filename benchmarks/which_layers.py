r"""Which layers should adapt? All of a backbone, its norms, its last stages, or all with smaller rates for early ones.

    python benchmarks/which_layers.py --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data eurosat=path/to/eurosat --methods moco,distill --variants all,norm,norm*5,last,decay0.75

`tpssl_hf.pretrain` adapts without labels, with each method's defaults, and each time some parameters stay as they are:
``norm`` trains the weights and biases of normalization layers (arXiv 2103.12718), ``last`` the
last two stages, ``decay0.75`` everything with a rate that falls by 0.75 from a stage to the one before; ``*5``
multiplies the rate. Then a probe gets four labels of each class of the training images and is asked about the other
training images; the test split is not read. Differences to ``all`` are paired by label draw, with a 95 % interval of
Student's t over them.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    prepare_process()

import numpy as np
import torch
from cells import BATCH_SIZE, BATCH_SIZES, read_pair
from does_it_help import CPU, draw, open_split
from evidence_page import mean_of, paired
from timm.models import group_parameters
from torch import nn

import tpssl_hf
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.evaluation.probes import few_label_answers
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.tasks.pretrain import prepare
from tpssl_hf.training.optim import build_optimizer

LAST = 2  # of timm's stages of a network
PER_CLASS, DRAWS = 4, range(1, 11)


def main() -> None:
    """Adapt each way, ask training labels, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", required=True, nargs="+", help="NAME=DATASET")
    parser.add_argument("--methods", default="moco,distill", help="with commas")
    parser.add_argument("--variants", default="all,norm,norm*5,last,decay0.75", help="with commas, all first")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--limit_images", type=int, default=10000)
    parser.add_argument("--work_dir", default="outputs/which_layers")
    arguments = parser.parse_args()
    print("| data | method | learns | probe % | minus base | minus all | CPU minutes |")
    print("|---|---|---|---|---|---|---|")
    for data in arguments.data:
        pair = read_pair(arguments.weights, data)
        base = asked(pair.architecture, pair.init, pair.dataset, arguments)
        print(f"| {pair.data} | | base | {mean_of(base)} | | | |", flush=True)
        for method in arguments.methods.split(","):
            everything: list[float] | None = None
            for variant in arguments.variants.split(","):
                found, minutes = adapted(pair, method, variant, arguments)
                everything = found if everything is None else everything
                print(
                    f"| {pair.data} | {method} | {variant} | {mean_of(found)} | {paired(base, found)} | "
                    f"{'' if variant == 'all' else paired(everything, found)} | {minutes:.1f} |",
                    flush=True,
                )


def adapted(pair: Any, method: str, variant: str, arguments: argparse.Namespace) -> tuple[list[float], float]:
    """Adapt with some parameters fixed; return what training labels say of the last network, and CPU minutes."""
    began = time.process_time()
    kind, _, factor = variant.partition("*")
    with (
        mock.patch.object(prepare, "load_backbone", partial(load_partly_fixed, kind)),
        mock.patch.object(prepare, "optimizer_over", partial(optimizer_over, kind, float(factor or 1))),
    ):
        run = tpssl_hf.pretrain(
            backbone=pair.architecture,
            init=pair.init,
            dataset=pair.dataset,
            method=method,
            select="last",
            precision="fp32",
            batch_size=BATCH_SIZES.get(method, BATCH_SIZE),
            max_steps=arguments.max_steps,
            image_size=arguments.image_size,
            limit_images=arguments.limit_images,
            cache_dir=f"{arguments.work_dir}/cache",
            output_dir=Path(arguments.work_dir) / f"{pair.weights}_{pair.data}_{method}_{variant.replace('*', 'x')}",
        )
    minutes = (time.process_time() - began) / 60
    return asked(pair.architecture, str(run.model_path), pair.dataset, arguments), minutes


def load_partly_fixed(kind: str, *arguments: Any, **keywords: Any) -> tuple[nn.Module, Any]:
    """Load a backbone of which only the parameters of the variant are trained."""
    backbone, origin = load_backbone(*arguments, **keywords)
    stages = stages_of(backbone)
    top = max(stages.values())
    norms = {
        id(p) for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()
    }
    for name, parameter in backbone.named_parameters():
        learns = {"norm": id(parameter) in norms, "last": stages[name] > top - LAST}
        parameter.requires_grad_(learns.get(kind, True))
    return backbone, origin


def optimizer_over(kind: str, factor: float, method: Any, optim: Any) -> torch.optim.Optimizer:
    """Build the run's optimizer with the rates of the variant."""
    stages = stages_of(method.deployed)
    top = max(stages.values())
    decay = float(kind.removeprefix("decay")) if kind.startswith("decay") else 1.0
    rates = {id(p): factor * decay ** (top - stages[name]) for name, p in method.deployed.named_parameters()}
    built = build_optimizer(optim.optimizer, method, weight_decay=optim.weight_decay, momentum=optim.momentum)
    groups = list(built.param_groups)
    built.param_groups.clear()
    for group in groups:
        members = group.pop("params")
        for rate in sorted({rates.get(id(p), 1.0) for p in members}):
            some = [p for p in members if rates.get(id(p), 1.0) == rate]
            built.add_param_group({**group, "params": some, "lr_multiplier": rate})
    return built


def stages_of(backbone: Any) -> dict[str, int]:
    """Return the stage of each parameter by its name, counted by timm from the stem's 0."""
    found: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
    return found


def asked(architecture: str, init: str, dataset: str, arguments: argparse.Namespace) -> list[float]:
    """Return the accuracy of a probe on other training images, for each draw of labels."""
    train = open_split(dataset, "train", arguments)
    assert train.labels is not None
    network, _ = load_backbone(architecture, init=init, image_size=arguments.image_size)
    views = ViewSettings.of(preprocessing_of(network), 0, horizontal_flip=False)
    features = extract_features(network.eval(), train, np.arange(len(train)), views, CPU)
    found = []
    for seed in DRAWS:
        bank = draw(train.labels, PER_CLASS, seed)
        others = np.setdiff1d(np.arange(len(train)), bank)
        answers = few_label_answers(features[bank], train.labels[bank], features[others])
        found.append(float((answers == train.labels[others]).mean()))
    return found


if __name__ == "__main__":
    main()
