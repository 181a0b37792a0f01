"""Cards: what they say, and when they are refused."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from tpssl_hf.errors import InputError
from tpssl_hf.hub.card import render_card
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.hub.redaction import publishable
from tpssl_hf.hub.run_record import gather
from tpssl_hf.tasks.pretrain.helped import verdict as judge

KINDS = ("adapted", "classifier", "segmenter")


def card_of(run: Path, **choices: Any) -> str:
    return render_card(gather(run, PublishConfig(**{"license": "apache-2.0", **choices})), "me/x", frozenset())


def changed(run: Path, folder: Path, **results: Any) -> Path:
    """Copy a run with other entries in its results.json; an entry of None goes."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    found = json.loads((folder / "results.json").read_text()) | results
    (folder / "results.json").write_text(json.dumps({name: v for name, v in found.items() if v is not None}))
    return folder


@pytest.mark.parametrize(
    ("kind", "library", "pipeline", "metric"),
    [
        ("adapted", "timm", "image-feature-extraction", None),
        ("classifier", "timm", "image-classification", "accuracy"),
        ("segmenter", "tpssl_hf", "image-segmentation", "mean_iou"),
    ],
)
def test_the_hub_files_it_by_the_numbers_the_run_wrote(
    kind: str, library: str, pipeline: str, metric: str | None, runs: dict[str, Path]
) -> None:
    card, results = ModelCard(card_of(runs[kind])), json.loads((runs[kind] / "results.json").read_text())
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (library, pipeline, "apache-2.0")
    assert results["method"] in card.data.tags and "arxiv:2205.03001" in card.data.tags
    if metric:
        shown = {entry.metric_type: entry for entry in reversed(card.data.eval_results)}
        assert shown[metric].metric_value == pytest.approx(results["metrics"][metric], abs=1e-4)
        assert shown[metric].metric_args["labels"] == results["labels"]["count"]
        assert "last" in shown[metric].metric_args["protocol"] and shown[metric].dataset_split == "test"
    for fact in (results["dataset"]["fingerprint"], "run_config.yaml", f"seed {results['seed']}", "## Limits"):
        assert fact in card.content
    assert "$" not in card.text and "{{" not in card.text and "{%" not in card.text


def test_whether_others_get_what_was_scored_is_on_the_card(runs: dict[str, Path], tmp_path: Path) -> None:
    found = json.loads((runs["classifier"] / "results.json").read_text())["published_path"]
    assert "this model gave 32 test images the answers that were scored" in card_of(runs["classifier"])
    assert "decode_image" not in card_of(runs["classifier"])
    said = "timm: 2 of 32 images answered otherwise than in the evaluation (a.png: 'x' (1.00) and not 'y' (1.00))"
    paths = [{**path, "agree_if_read_as_trained": 2} for path in found["paths"]]
    for limits, call in ((None, 'decode_image("image.png")'), ([0, 4095], ", wide_range=(0, 4095))")):
        wrong = found | {"warning": said, "paths": paths} | ({} if limits is None else {"wide_range": limits})
        text = card_of(changed(runs["classifier"], tmp_path / f"run{limits}", published_path=wrong))
        assert "**Warning**: what is above was measured on images read as in training" in text
        assert said in text and call in text
    before = changed(runs["classifier"], tmp_path / "before", published_path=None)
    assert "Warning" not in card_of(before) and "answers that were scored" not in card_of(before)


def test_base_weights_are_followed_over_a_local_folder_that_has_not_changed(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    assert "random weights; then byol on digits (target_pretrain)" in card_of(runs["classifier"])
    init = json.loads((runs["classifier"] / "results.json").read_text())["init"] | {"sha256": "0" * 64}
    run = changed(runs["classifier"], tmp_path / "run", init=init)
    with pytest.raises(InputError, match="base weights are not known.*'adapted/model'.*--base_model"):
        card_of(run)
    card = ModelCard(card_of(run, base_model="timm/resnet18.a1_in1k"))
    assert (card.data.base_model, card.data.base_model_relation) == ("timm/resnet18.a1_in1k", "finetune")


def test_base_weights_that_are_published_nowhere_are_told_in_words(runs: dict[str, Path], tmp_path: Path) -> None:
    run = changed(runs["adapted"], tmp_path / "run", init={"kind": "folder", "name": "ours", "sha256": "0" * 64})
    card = ModelCard(card_of(run, base_note="A ResNet-18 of our own images."))
    assert card.data.base_model is None and "random weights" not in card.text
    assert "- **Base weights**: A ResNet-18 of our own images (published nowhere)" in card.text
    with pytest.raises(InputError, match="base_note 'ours' is not what this run started from, random weights"):
        card_of(runs["adapted"], base_note="ours")
    with pytest.raises(InputError, match="not both"):
        card_of(run, base_note="ours", base_model="none")


def test_converted_base_weights_are_named_by_their_file(runs: dict[str, Path], tmp_path: Path) -> None:
    start = shutil.copytree(runs["adapted"] / "model", tmp_path / "moco")
    source = {"file": "moco_v2.pth.tar", "sha256": "f" * 64, "family": "MoCo"}
    config = json.loads((start / "config.json").read_text()) | {"tpssl_hf": {"recipe": "convert", "source": source}}
    (start / "config.json").write_text(json.dumps(config))
    results = json.loads((runs["adapted"] / "results.json").read_text())
    digest = hashlib.sha256((start / "model.safetensors").read_bytes()).hexdigest()
    init = {"kind": "folder", "name": "moco", "sha256": digest, "license": "cc-by-nc-4.0"}
    run = changed(runs["adapted"], tmp_path / "run", init=init, config=results["config"] | {"init": str(start)})
    card = ModelCard(card_of(run, license=None))
    assert f"- **Base weights**: moco_v2.pth.tar, SHA-256 `{'f' * 64}`, converted (MoCo)" in card.text
    assert card.data.license == "cc-by-nc-4.0" and "random weights" not in card.text
    assert "published nowhere" not in card.text
    assert ModelCard(card_of(run, base_model="facebook/moco")).data.base_model == "facebook/moco"


@pytest.mark.parametrize(
    ("init", "base", "text"),
    [
        ({"kind": "timm", "name": "resnet18.a1_in1k", "license": "apache-2.0"}, "timm/resnet18.a1_in1k", "apache-2.0"),
        ({"kind": "hub", "name": "you/y", "revision": "abc123", "license": "mit"}, "you/y", "at commit `abc123`"),
    ],
)
def test_published_base_weights_are_named_and_their_license_inherited(
    init: dict[str, str], base: str, text: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = changed(runs["adapted"], tmp_path / "run", init=init)
    card = ModelCard(card_of(run, license=None))
    assert (card.data.base_model, card.data.license) == (base, init["license"]) and text in card.text
    with pytest.raises(InputError, match="is not what this run started from"):
        card_of(run, base_model="none")


@pytest.mark.parametrize(
    ("results", "choices", "sentence"),
    [
        ({}, {"license": None}, "license .* is not known.*--license apache-2.0"),
        ({}, {"license": "Apache 2"}, "is not spelled as on the Hub"),
        ({"dataset": None}, {}, "does not say which images"),
        ({"seed": None}, {}, "does not say which seed"),
        ({"init": {"kind": "file", "name": "a.safetensors"}}, {}, "--base_model timm/resnet18.a1_in1k"),
        ({"init": {"kind": "timm", "name": "resnet18.default"}}, {}, "base weights are not known"),
        ({}, {"base_model": "resnet18"}, "is not a Hub id"),
        ({}, {"dataset_id": "digits"}, "is not a Hub id"),
        ({"recipe": "verdict"}, {}, "was made by 'verdict'"),
        ({"label_seeds": [1, 2]}, {}, "holds 2 runs; publish one of them, e.g. .*label_seed_1"),
        ({}, {"verdict": "nowhere"}, "holds no verdict.json"),
    ],
)
def test_without_what_a_reader_must_know_there_is_no_card(
    results: dict[str, Any], choices: dict[str, Any], sentence: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        card_of(changed(runs["adapted"], tmp_path / "run", **results), **choices)


def test_folders_without_a_finished_run_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean"):
        card_of(runs["adapted"] / "model")
    with pytest.raises(InputError, match="is not a folder"):
        card_of(tmp_path / "nowhere")
    run = changed(runs["adapted"], tmp_path / "run")
    (run / "model" / "model.safetensors").write_bytes((run / "model" / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match="bytes long and should be"):
        publish_run(run, "me/x", PublishConfig(license="mit", dry_run=str(tmp_path / "out")))


def verdict_of(name: str) -> dict[str, Any]:
    def row(kind: str, probe: float) -> dict[str, Any]:
        return {"name": kind, "width": 8, "probe": [probe, probe], "knn": [0.5, 0.5], "clustering": [0.5]}

    def pair(against: str, mean: float) -> dict[str, Any]:
        return {"name": name, "against": against, "probe": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}}

    rows = [row("base", 0.6), row("base, statistics only", 0.65), row(name, 0.7)]
    comparisons = [pair("base", 0.1), pair("base, statistics only", -0.05)]
    questions = {"chosen": "2 draws of 20 labels"}
    return {"sentence": "Adapted.", "rows": rows, "comparisons": comparisons, "questions": questions}


def test_a_verdict_is_shown_with_its_intervals(runs: dict[str, Path], tmp_path: Path) -> None:
    run = changed(runs["adapted"], tmp_path / "mine")
    (run / "verdict").mkdir()
    (run / "verdict" / "verdict.json").write_text(json.dumps(verdict_of("mine")))
    assert "| this model | 70.0 % | 50.0 % | +10.0 [+9.0, +11.0] | −5.0 [−6.0, −4.0] |" in card_of(run)
    assert "Did adapting help" not in card_of(run, verdict="none")
    (run / "verdict" / "verdict.json").write_text(json.dumps(verdict_of("yours")))
    with pytest.raises(InputError, match="is about yours, not about mine"):
        card_of(run)


def test_one_of_several_draws_says_how_the_others_went(runs: dict[str, Path], tmp_path: Path) -> None:
    run = changed(runs["classifier"], tmp_path / "all" / "label_seed_1")
    spread = {"mean": 0.5, "standard_deviation": 0.1, "values": [0.4, 0.6]}
    (tmp_path / "all" / "results.json").write_text(json.dumps({"label_seeds": [1, 2], "accuracy": spread}))
    assert "one of 2 label seeds, over which it is 50.0 ± 10.0 % (40.0, 60.0)" in card_of(run)
    assert "One run with one label seed" in card_of(runs["classifier"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_snippet_of_a_card_runs_on_the_folder_it_describes(
    kind: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out"
    said: list[str] = []
    choices = PublishConfig(license="apache-2.0", dry_run=str(folder))
    assert publish_run(runs[kind], "me/x", choices, say=said.append) == str(folder)
    card = (folder / "README.md").read_text()
    Image.new("RGB", (40, 36), (90, 120, 30)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda folder, name: Path(folder) / name)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        local = block.replace("hf-hub:me/x", f"local-dir:{folder}").replace("me/x", str(folder))
        exec(compile(local, "snippet", "exec"), {})
    assert yaml.safe_load((folder / "run_config.yaml").read_text())["backbone"] == "test_resnet"
    with pytest.raises(InputError, match="is not empty"):
        publish_run(runs[kind], "me/x", choices, say=said.append)


def test_paths_go_and_what_only_looks_like_one_stays() -> None:
    known = ["a-known-secret"]
    given = {
        "whole": "/home/jane doe/my images",
        "inside": "see /home/jane/run/log.txt, or C:\\Users\\jane\\x.csv; 3 images/s",
        "several": "/a/b,/c/d",
        "address": "https://jane:word@huggingface.co/me/x and https://huggingface.co/me/x",
        "repo": "me/x and and/or 8 / 8",
        "class_names": ["/m/01abc"],
        "token": ["a-known-secret", "hf_abcdefghijklmnopqrstuv", "hf_hub_id"],
    }
    assert publishable(given, known) == {
        "whole": "my images",
        "inside": "see log.txt, or x.csv; 3 images/s",
        "several": "b,d",
        "address": "https://<hidden>@huggingface.co/me/x and https://huggingface.co/me/x",
        "repo": "me/x and and/or 8 / 8",
        "class_names": ["/m/01abc"],
        "token": ["<hidden>", "<hidden>", "hf_hub_id"],
    }


def test_a_card_says_first_that_adapting_made_it_worse(runs: dict[str, Path], tmp_path: Path) -> None:
    before, after = ({"linear_probe_accuracy": [1] * right + [0] * (100 - right)} for right in (92, 60))
    run = changed(runs["adapted"], tmp_path / "worse", verdict=judge(before, before, after))
    text = card_of(run)
    assert "**The saved backbone is WORSE than the weights it started from: linear probe −32.0 points" in text


def test_a_compared_classifier_says_first_what_it_is_and_what_stands_beside_it(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    gain = {"mean": 0.3, "low": 0.1, "high": 0.5, "questions": 40}
    found = {"finetuned": {"accuracy": 0.4}, "frozen_probe": {"accuracy": 0.7, "minus_finetuned": gain}}
    saved = {"candidate": "frozen_probe", "select": "best", "usable": True, "labels": 40, "cross_validated": found}
    card = card_of(changed(runs["classifier"], tmp_path / "c", saved=saved, beside={"finetuned": 0.412}))
    first = card.split("\n# x\n\n")[1].splitlines()[0]
    method = json.loads((runs["classifier"] / "results.json").read_text())["method"]
    assert first.startswith(f"**This model is the frozen probe of the start, not what {method} made.")
    assert "+30.0 points (+10.0 to +50.0)" in first
    assert f"never used to choose: {method} 41.2 %." in card
    assert "not what" not in card_of(runs["classifier"])
