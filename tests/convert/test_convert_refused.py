"""What convert refuses beside unreadable files: other networks, other orders, folders of others, unfit settings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpssl_hf.convert import match as convert_match
from tpssl_hf.convert import run as converting
from tpssl_hf.convert.config import ConvertConfig
from tpssl_hf.convert.run import convert
from tpssl_hf.errors import InputError

# timm 1.0 opens config.json of a local-dir without closing it
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def few_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_match, "HINTS", ("resnet18", "resnet34"))


@pytest.fixture
def state(tiny_backbone: nn.Module) -> State:
    return tiny_backbone.state_dict()


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., ConvertConfig]:
    def make(tree: Any = None, backbone: str = "test_resnet", **settings: Any) -> ConvertConfig:
        file = tmp_path / "weights.pth"
        if tree is not None:
            torch.save(tree, file)
        settings = {"weights": str(file), "output_dir": str(tmp_path / "model"), "image_size": 32, **settings}
        return ConvertConfig(backbone=backbone, **settings)

    return make


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(options: Any, state: State, number: float, tmp_path: Path) -> None:
    state["bn1.weight"][0] = number
    with pytest.raises(InputError, match=r"not finite numbers, in bn1.weight"):
        convert(options(state))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_another_network_is_refused_and_the_right_one_named(options: Any) -> None:
    with torch.device("meta"):
        deeper = timm.create_model("resnet34", num_classes=0).state_dict()
    tensors = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in deeper.items()}
    with pytest.raises(InputError) as refused:  # all of a resnet18 is in a resnet34
        convert(options(tensors, "resnet18"))
    assert "no place for (layer1.2.conv1.weight" in str(refused.value)
    assert "it is resnet34's, say `--backbone resnet34`" in str(refused.value)


def test_missing_and_misshapen_tensors_are_named(options: Any, state: State) -> None:
    state["conv1.0.weight"] = torch.zeros(1).expand(10**6, 10**6)  # a few bytes that claim to be terabytes
    del state["bn1.running_mean"]
    with pytest.raises(InputError) as refused:
        convert(options({"model": {f"module.{key}": value for key, value in state.items()}}))
    assert "weights.pth does not hold test_resnet below 'model.module.'" in str(refused.value)
    assert "1 missing (bn1.running_mean)" in str(refused.value)
    assert "1 of another shape (conv1.0.weight)" in str(refused.value)


def test_a_part_that_computes_something_is_not_left_out(options: Any) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    with pytest.raises(InputError, match=r"no place for \(fc_norm.weight\)"):
        convert(options(state | {"fc_norm.weight": torch.ones(64)}, "test_vit", image_size=None))


def renamed(state: State) -> State:
    return {f"t{number}.{key.rpartition('.')[2]}": value for number, (key, value) in enumerate(state.items())}


def test_by_order_takes_other_names_only_when_asked(options: Any, state: State) -> None:
    tree = renamed(state) | {"last.weight": torch.ones(5, 192), "last.bias": torch.ones(5)}
    with pytest.raises(InputError, match=r"does not hold test_resnet.*missing.*--by_order"):
        convert(options(tree))
    features = timm.create_model("test_resnet", num_classes=0).num_features
    tree["last.weight"] = torch.ones(5, features)
    done = convert(options(tree, by_order=True))
    written = load_file(done.folder / "model.safetensors")
    assert all(torch.equal(written[key], value) for key, value in state.items() if "num_batches" not in key)
    assert dict(done.left_out) == {"last": 2} and "in their order" in done.lines[1]
    with_head = convert(options(tree, by_order=True, keep_classifier=True))
    assert torch.equal(load_file(with_head.folder / "model.safetensors")["fc.weight"], tree["last.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: dict(reversed(s.items())), "differs from the order of this network at tensor 1 of"),
        (lambda s: dict(list(s.items())[:20]), "ends after"),
        (lambda s: s | {f"more{n}.weight": torch.ones(3) for n in range(3)}, "goes on after"),
        (lambda s: {k.replace("bias", "running_mean"): v for k, v in s.items()}, "differs from the order"),
        (lambda s: {k: -v if v.is_floating_point() else v for k, v in s.items()}, "negative variances"),
    ],
)
def test_by_order_refuses_what_is_not_in_order(options: Any, state: State, change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        convert(options(change(renamed(state)), by_order=True))


def test_by_order_needs_a_file_that_keeps_the_order(options: Any, state: State, tmp_path: Path) -> None:
    save_file(renamed(state), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="forgets the order"):
        convert(options(weights=str(tmp_path / "model.safetensors"), by_order=True))


def test_only_a_folder_of_its_own_is_replaced(options: Any, state: State, tmp_path: Path) -> None:
    folder = convert(options(state)).folder
    convert(options(state))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files than convert's"):
        convert(options(state))
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tpssl_hf": {"recipe": "target_pretrain"}}))
    with pytest.raises(InputError, match=r"holds other files than convert's \(config.json\)"):
        convert(options(state))
    with pytest.raises(InputError, match="is a file; give a folder"):
        convert(options(state, output_dir=str(tmp_path / "weights.pth")))


def test_nothing_is_written_where_features_differ(
    options: Any, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: nn.Module, *arguments: Any, **settings: Any) -> Path:
        torch.nn.init.zeros_(model.conv1[0].weight)  # type: ignore[index, union-attr, arg-type]
        folder = save(model, *arguments, **settings)
        torch.nn.init.ones_(model.conv1[0].weight)  # type: ignore[index, union-attr, arg-type]
        return folder

    save = converting.save_timm_folder
    monkeypatch.setattr(converting, "save_timm_folder", spoil)
    with pytest.raises(InputError, match="gives other features in timm's test_resnet before it was written"):
        convert(options(state))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": ""}, "no weights are given"),
        ({"backbone": ""}, "backbone '' is no timm model; give the one that the file holds"),
        ({"backbone": "resnet5"}, "resnet50"),
        ({"backbone": "resnet18.nobody"}, r"Invalid pretrained tag \(nobody\)"),
        ({"output_dir": ""}, "add `--output_dir FOLDER`"),
        ({"mean": "a,b"}, "mean 'a,b' is not one number or three"),
        ({"mean": 127.5}, "divide by 255"),
        ({"std": 0.0}, "std 0.0 is not"),
        ({"std": "0.2,0.2"}, "std '0.2,0.2' is not"),
        ({"image_size": 0}, "image_size 0 is smaller"),
        ({"keep_classifier": True}, "holds no classifier"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: Any, state: State, settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        convert(options(state, **settings))


def test_mean_and_std_are_those_given_or_those_of_a_tag(options: Any) -> None:
    state = timm.create_model("test_vit", num_classes=10).state_dict()
    plain = {key: value for key, value in state.items() if not key.startswith("head")}

    def stored(tree: State, **settings: Any) -> list[float]:
        done = convert(options(tree, settings.pop("backbone", "test_vit"), image_size=None, **settings))
        mean: list[float] = json.loads((done.folder / "config.json").read_text())["pretrained_cfg"]["mean"]
        return mean

    assert stored(state) == [0.5, 0.5, 0.5]  # timm's: its names, a classifier, unknown to torchvision
    assert stored(plain) == [0.485, 0.456, 0.406]  # as DINO's are
    assert stored(plain, backbone="test_vit.r160_in1k") == [0.5, 0.5, 0.5]
    assert stored(plain, mean="0.1,0.2,0.3") == [0.1, 0.2, 0.3]
    assert stored(plain, mean=[0.1, 0.2, 0.3]) == [0.1, 0.2, 0.3]
    assert stored(plain, mean=0.25) == [0.25, 0.25, 0.25]
