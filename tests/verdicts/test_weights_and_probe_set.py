"""What a verdict compares: weights that are named in several ways, and questions that no draw takes labels from."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
from PIL import Image

from tpssl_hf.data.image_cache import load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.verdicts.config import VerdictConfig
from tpssl_hf.verdicts.probe_set import choose_probe_set
from tpssl_hf.verdicts.weights import find_weights


def weights(folder: Path, architecture: str) -> Path:
    """Save random weights as a run leaves them, and return the run's folder."""
    model = timm.create_model(architecture, pretrained=False, num_classes=0)
    folder.mkdir()
    plain = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save_timm_folder(model, folder / "model", preprocessing=plain, provenance={}, license=None)
    return folder


def test_no_question_is_ever_a_label_and_all_draws_ask_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    budget: dict[str, Any] = {
        "cache_budget": 1 << 30,
        "num_workers": 1,
        "progress": False,
        "cache_dir": tmp_path / "cache",
    }
    source = load_source("digits")
    store, _ = load_image_cache(source, image_size=32, **budget)
    for config in (VerdictConfig(labels=40), VerdictConfig(labels=700), VerdictConfig(labels="all", images=100)):
        asked = choose_probe_set(config, store, source, seed=0)
        again = choose_probe_set(config, store, source, seed=0)
        assert len(asked.trials) == 20 and asked.overlap > 0
        for trial, same in zip(asked.trials, again.trials, strict=True):
            assert not set(trial.bank) & set(trial.queries) and np.array_equal(trial.bank, same.bank)
            assert np.array_equal(store.labels[asked.indices[trial.bank]], trial.bank_labels)
            assert np.array_equal(store.labels[asked.indices[trial.queries]], trial.query_labels)
        assert len({trial.bank.tobytes() for trial in asked.trials}) == 20
        together = {trial.queries.tobytes() for trial in asked.trials}
        assert (len(together) == 1) == asked.shared == (config.labels == 40)
    assert (
        np.bincount(choose_probe_set(VerdictConfig(), store, source, seed=0).trials[0].bank_labels).tolist()
        == [4] * 10
    )
    other = choose_probe_set(VerdictConfig(), store, source, seed=1)
    assert not np.array_equal(other.trials[0].queries, asked.trials[0].queries)


def test_the_architecture_is_that_of_the_weights(tmp_path: Path) -> None:

    run = weights(tmp_path / "run", "test_vit")
    base, adapted = find_weights(VerdictConfig(base="random", adapted=str(run)))
    assert base.architecture == adapted[0].architecture == "test_vit"
    base, adapted = find_weights(VerdictConfig(base="resnet18.tv_in1k", adapted=str(run)))
    assert (base.architecture, adapted[0].architecture) == ("resnet18.tv_in1k", "test_vit")
    alone = run / "model" / "model.safetensors"
    base, adapted = find_weights(VerdictConfig(base="timm", backbone="resnet18.tv_in1k", adapted=str(alone)))
    assert adapted[0].architecture == "resnet18" and adapted[0].file == alone
    named = find_weights(VerdictConfig(base="random", adapted=f"{run},{run / 'model'}"))[1]
    assert [one.name for one in named] == ["run", "run (2)"]
    hub = find_weights(VerdictConfig(base="random", adapted="somebody/something"))[1][0]
    assert hub.file is None and hub.architecture == "resnet18"


def test_a_class_that_no_draw_shows_is_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    source = load_source("digits")
    store, _ = load_image_cache(
        source, image_size=32, cache_budget=1 << 30, num_workers=1, progress=False, cache_dir=tmp_path / "cache"
    )
    assert store.labels is not None
    nines = np.flatnonzero(store.labels == 9)
    store.labels = store.labels.copy()
    store.labels[nines[1:]] = 8  # one image alone is a nine, and it is asked about
    config = VerdictConfig(labels=20, label_mode="proportional")
    asked = choose_probe_set(config, store, source, seed=0)
    for trial in asked.trials:
        assert set(trial.query_labels) <= set(trial.bank_labels)
    assert "not among them, as no label is left to learn from: 9" in asked.chosen


def test_several_labels_an_image_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    feature = datasets.List(datasets.ClassLabel(names=["cat", "dog"]))
    columns = {"image": [Image.new("RGB", (8, 8), (20 * n,) * 3) for n in range(4)], "tags": [[0], [1], [], [0, 1]]}
    features = datasets.Features(image=datasets.Image(), tags=feature)
    (tmp_path / "tagged").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "tagged" / "train.parquet")
    source = load_source(str(tmp_path / "tagged"))
    options: dict[str, Any] = {"cache_budget": 1 << 30, "num_workers": 1, "progress": False}
    store, _ = load_image_cache(source, image_size=8, cache_dir=tmp_path / "cache", **options)
    with pytest.raises(InputError, match="'tagged' gives several labels an image, which `tpssl-hf classify`"):
        choose_probe_set(VerdictConfig(), store, source, seed=0)
    (tmp_path / "labels.csv").write_text("row,cat,dog\n0,1,0\n1,0,1\n")
    with pytest.raises(InputError, match="labels.csv gives several labels an image, .* give one label an image here"):
        choose_probe_set(VerdictConfig(labels=str(tmp_path / "labels.csv")), store, source, seed=0)
    assert choose_probe_set(VerdictConfig(labels="none"), store, source, seed=0).chosen == "no labels"


def test_words_for_no_label_are_counted_in_the_labels_of_a_verdict(tmp_path: Path) -> None:
    source = load_source("digits")
    store, _ = load_image_cache(
        source, image_size=32, cache_budget=1 << 30, num_workers=1, progress=False, cache_dir=tmp_path / "cache"
    )
    assert store.labels is not None
    lines = [f"{row},{label if row < 60 else 'n/a'}" for row, label in enumerate(store.labels[:70].tolist())]
    (tmp_path / "mine.csv").write_text("\n".join(["row,label", *lines]))
    asked = choose_probe_set(VerdictConfig(labels=str(tmp_path / "mine.csv")), store, source, seed=0)
    assert asked.trials and asked.notes[0].endswith("unlabeled 1,437")
    assert any("10 entries say 'n/a'" in note for note in asked.notes)
    assert any("60 labels of mine.csv name rows and nothing else" in note for note in asked.notes)
