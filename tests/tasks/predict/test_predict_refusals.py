"""Models, keys and folders that cannot be used, each in a sentence."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
from finished_models import FILES, noise, run
from safetensors.torch import load_file, save_file

from tpssl_hf.config.parser import build_parser
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.predict.config import EmbedConfig, PredictConfig
from tpssl_hf.tasks.predict.run import embed


def test_a_folder_that_holds_a_training_run_is_refused(classifier: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("method: byol\n")
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds results of something else"):
        run(classifier, photos, tmp_path / "run")


def test_results_inside_the_folder_of_images_are_refused(classifier: Path, segmenter: Path, photos: Path) -> None:
    for inside in (photos, photos / "out", photos / "sub" / ".." / "out"):
        with pytest.raises(InputError, match="overlap"):
            run(classifier, photos, inside)
    (photos / "masks").mkdir()
    noise(1).save(photos / "masks" / "1.png")
    with pytest.raises(InputError, match="overlap"):
        run(segmenter, photos / "masks", photos)
    os.symlink(photos, photos.parent / "link")
    with pytest.raises(InputError, match="overlap"):
        run(classifier, photos, photos.parent / "link" / "out")
    assert not (photos / "out").exists()


def test_a_run_folder_stands_for_its_model(classifier: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(classifier, folder / "model")
    (folder / "config.yaml").touch()
    with pytest.raises(InputError, match="is not finished; start it again"):
        run(folder, photos, tmp_path / "out")
    (folder / "results.json").write_text("{}")
    assert run(folder, photos, tmp_path / "out").images == len(FILES)
    several = tmp_path / "several"
    shutil.copytree(folder, several / "label_seed_1")
    with pytest.raises(InputError, match="several runs: label_seed_1; give the folder of one"):
        run(several, photos, tmp_path / "out2")


def test_what_is_no_finished_model_is_refused(
    classifier: Path, segmenter: Path, backbone: Path, photos: Path, tmp_path: Path
) -> None:
    def refused(model: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            run(model, photos, tmp_path / "out")

    refused("", "model is missing")
    refused(backbone, "is a backbone and knows no classes; use embed")
    refused(tmp_path / "nowhere", "no folder here and no Hub id")
    refused("nobody/nothing", "the Hub did not deliver it")
    refused(photos, "holds no model")
    refused(classifier / "model.safetensors", "is a file; give the folder")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    refused(tmp_path / "begun", "not finished")
    for source, name, message in [
        (classifier, "model.safetensors", "holds no model.safetensors"),
        (classifier, "config.json", "holds no config.json"),
        (segmenter, "preprocessor_config.json", "holds no preprocessor_config.json"),
    ]:
        copy = shutil.copytree(source, tmp_path / f"without-{name}")
        (copy / name).unlink()
        refused(copy, message)
    damaged = shutil.copytree(classifier, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"short")
    refused(damaged, "not a readable safetensors file")
    (damaged / "config.json").write_text("{")
    refused(damaged, "cannot be read")
    (damaged / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(damaged, "neither a timm model nor a segmenter")
    gray = timm.create_model("test_resnet", num_classes=2, in_chans=1)
    save_file(gray.state_dict(), damaged / "model.safetensors")
    facts = {"input_size": [1, 32, 32], "num_classes": 2}
    config = {"architecture": "test_resnet", "num_classes": 2, "model_args": {"in_chans": 1}, "pretrained_cfg": facts}
    (damaged / "config.json").write_text(json.dumps(config))
    refused(damaged, "takes images of 1 channels")
    lacking = shutil.copytree(classifier, tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    tensors.pop("layer1.0.bn1.running_var")
    save_file(tensors, lacking / "model.safetensors")
    refused(lacking, "damaged or incomplete: its weights lack 1 tensors .*running_var")
    headless = shutil.copytree(segmenter, tmp_path / "headless")
    tensors = load_file(headless / "model.safetensors")
    tensors.pop("decoder.classifier.bias")
    save_file(tensors, headless / "model.safetensors", metadata={"format": "pt"})
    refused(headless, "lacks 1 tensors .*decoder.classifier.bias")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_vector_per_image_has_no_embeddings(backbone: Path, photos: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(backbone, tmp_path / "maps")
    config = json.loads((copy / "config.json").read_text())
    config["model_args"]["global_pool"] = ""
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no vector per image"), pytest.warns(match="config.json .* was changed"):
        embed(EmbedConfig(str(copy), str(photos), output_dir=str(tmp_path / "out"), device="cpu"), progress=False)


def test_keys_out_of_range_are_refused(classifier: Path, photos: Path, tmp_path: Path) -> None:
    for key in ("batch_size", "num_workers", "save_every", "top_k", "limit_images"):
        with pytest.raises(InputError, match=f"`?{key}`? is 0[;:] give a number from 1"):
            run(classifier, photos, tmp_path / "out", **{key: 0})
    with pytest.raises(InputError, match="dataset is missing"):
        run(classifier, "", tmp_path / "out")
    for device in ("gpu", "cuda:77", "meta"):
        with pytest.raises(InputError, match=f"device '?{device}"):
            run(classifier, photos, tmp_path / "out", device=device)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        run(classifier, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_key_has_a_help_text() -> None:
    parser = build_parser([PredictConfig], "predict", {})
    assert "--overlays" in parser.format_help() and "--save_every" in parser.format_help()
    assert build_parser([EmbedConfig], "embed", {}).get_defaults().batch_size == 32
