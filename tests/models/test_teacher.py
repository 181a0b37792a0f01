"""Which teachers are found, and that they see what they would be shown without a student."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_teacher import SHOWN, save_teacher, tiny_teacher
from torch import Tensor

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.teacher import Teacher, find_teacher, load_teacher
from tpssl_hf.models.timm_export import Preprocessing

STUDENT = Preprocessing(32)
SOURCE = WeightsSource("random", "test_convnext")


def normalized(images: Tensor, shown: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (shown.mean, shown.std))
    return (images - mean) / std


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def test_it_gives_what_its_network_gives_for_the_images_themselves(images: Tensor) -> None:
    teacher = load_teacher(tiny_teacher(), None, 0, STUDENT)
    direct = timm.create_model(f"local-dir:{tiny_teacher()}/model", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        expected = direct(normalized(images, SHOWN))
    found = teacher.features(normalized(images, STUDENT))
    assert teacher.image_size == 48 and teacher.width == found.shape[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [32, 80])
def test_images_of_another_size_are_brought_to_its_own(side: int) -> None:
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    teacher = load_teacher(tiny_teacher(), None, 0, STUDENT)
    resized = F.interpolate(pixels, (48, 48), mode="bilinear", antialias=side > 48)
    found = teacher.seen(normalized(pixels, STUDENT))
    torch.testing.assert_close(found, normalized(resized, SHOWN), rtol=1e-5, atol=1e-5)


def test_it_is_shown_another_size_if_asked() -> None:
    teacher = load_teacher(tiny_teacher(), None, 64, STUDENT)
    assert teacher.image_size == 64 and teacher.seen(torch.zeros(1, 3, 48, 48)).shape[2:] == (64, 64)


def test_it_stays_in_evaluation_mode_without_gradients() -> None:
    network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    teacher = Teacher(network, SOURCE, STUDENT)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert not teacher.features(torch.zeros(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_a_timm_name_a_run_a_folder_and_a_file_are_found(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    assert find_teacher(name, None) == (name, name)
    run = save_teacher(tmp_path / "run", seed=1)
    assert find_teacher(str(run), None) == ("test_convnext", str(run / "model"))
    assert find_teacher(str(run / "model"), None) == ("test_convnext", str(run / "model"))
    file = str(run / "model" / "model.safetensors")
    assert find_teacher(file, None) == ("test_convnext", file)


def test_weights_that_do_not_say_their_architecture_need_it_said(tmp_path: Path) -> None:
    run = save_teacher(tmp_path / "run", seed=1)
    alone = str(shutil.copy(run / "model" / "model.safetensors", tmp_path))
    with pytest.raises(InputError, match="does not say which network it is of; .* --teacher_backbone"):
        find_teacher(alone, None)
    assert load_teacher(alone, "test_convnext", 32, STUDENT).source.kind == "file"


def test_what_is_none_of_these_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="teacher 'resnet_18' is no timm model, existing folder or file, or Hub id"):
        find_teacher("resnet_18", None)
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}')
    with pytest.raises(InputError, match="teacher: init folder .* holds no model.safetensors"):
        load_teacher(str(tmp_path), None, 0, STUDENT)
