"""The method of a target pretraining where nobody names one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.image_cache import load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.teacher import Teacher
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.tasks.pretrain import method_choice
from tpssl_hf.tasks.pretrain.config import PretrainArgs, parse_pretrain
from tpssl_hf.tasks.pretrain.method_choice import named_method, sees_enlarged
from tpssl_hf.tasks.pretrain.shown_images import ShownImages

OWN_SIZE = 160  # of test_resnet's weights, as timm states it


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PretrainArgs]:
    """Labels that say the weights see enlarged images better; whoever asked them."""
    found: list[PretrainArgs] = []

    def ask_labels(args: PretrainArgs, accelerator: Accelerator) -> tuple[bool, str]:
        found.append(args)
        return True, "because"

    monkeypatch.setattr(method_choice, "ask_labels", ask_labels)
    return found


def named(folder: Path, **keys: Any) -> PretrainArgs:
    given = {"dataset": "digits", "backbone": "test_resnet", "init": "timm", "image_size": 32, **keys}
    return named_method(parse_pretrain({"output_dir": str(folder), **given}), Accelerator(cpu=True))


def test_weights_shown_small_images_teach_themselves(
    asked: list[PretrainArgs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = named(tmp_path)
    assert (args.task.method, args.method.teacher, len(asked)) == ("distill", "test_resnet", 1)
    assert args == parse_pretrain(
        {
            "dataset": "digits",
            "backbone": "test_resnet",
            "init": "timm",
            "image_size": 32,
            "method": "distill",
            "batch_size": 256,
            "output_dir": str(tmp_path),
        }
    )
    assert "method distill: because; --method decides otherwise" in capsys.readouterr().out


def test_a_budget_begins_with_the_batch_size_of_the_method(asked: list[PretrainArgs], tmp_path: Path) -> None:
    assert named(tmp_path, budget="9m").optim.batch_size == 64
    assert named(tmp_path, budget="9m", batch_size=32).optim.batch_size == 32
    assert named(tmp_path).optim.batch_size == 256, "which may have been asked for"


@pytest.mark.parametrize(
    "keys",
    [
        {"init": "random"},
        {"image_size": OWN_SIZE},
        {"image_size": 2 * OWN_SIZE},
        {"queue_size": 1024},
        {"streaming": True, "max_steps": 3},
    ],
)
def test_nobody_is_asked_where_there_is_nothing_to_choose(
    asked: list[PretrainArgs], tmp_path: Path, keys: dict[str, Any]
) -> None:
    assert named(tmp_path, **keys).task.method == "moco" and not asked


@pytest.mark.parametrize("method", ["moco", "byol", "distill"])
def test_a_method_that_is_named_stays(asked: list[PretrainArgs], tmp_path: Path, method: str) -> None:
    assert named(tmp_path, method=method).task.method == method and not asked


def test_labels_may_say_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_choice, "ask_labels", lambda *_: (False, "because"))
    args = named(tmp_path)
    assert args == named(tmp_path, method="moco")


@pytest.mark.parametrize("method", ["moco", "distill"])
def test_a_run_that_has_begun_keeps_its_method(asked: list[PretrainArgs], tmp_path: Path, method: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": method}))
    assert named(tmp_path).task.method == method and not asked


class Means(nn.Module):
    """Features (B, 2) of images: their mean, and nothing."""

    num_features = 2

    def __init__(self, pretrained_cfg: Any) -> None:
        super().__init__()
        self.pretrained_cfg, self.unused = pretrained_cfg, nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean(dim=(1, 2, 3)), torch.zeros(len(images))], dim=1)


def test_labels_say_who_sees_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = load_image_cache(
        load_source("digits"),
        image_size=16,
        limit_images=300,
        cache_dir=tmp_path,
        cache_budget=2**24,
        num_workers=1,
        progress=False,
    )
    network, source = load_backbone("test_resnet", init="random", image_size=16)
    shown = preprocessing_of(network)
    images = ShownImages(store, ViewSettings.of(shown, 0, horizontal_flip=False), torch.device("cpu"))
    seeing = Teacher(network, source, shown)
    better, sentence = sees_enlarged(Means(network.pretrained_cfg), seeing, images)
    assert better and sentence.startswith("shown 16 px in place of 16, the weights as they are answer +")
    blind = Teacher(Means(network.pretrained_cfg), source, shown)
    assert not sees_enlarged(network, blind, images)[0]
    monkeypatch.setattr(store, "labels", None)
    better, sentence = sees_enlarged(Means(network.pretrained_cfg), seeing, images)
    assert not better and "no labels" in sentence
