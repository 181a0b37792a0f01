"""There and back: what is pushed loads by its name in timm, transformers and tpssl_hf, and gives the same outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from loopback import TOKEN, LoopbackHub
from PIL import Image
from scripts import ROOT, load_script

from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

# Runs in a process of its own: the client reads the address of the Hub when it is imported.
PULL = """
import sys
import timm, torch
import tpssl_hf
from huggingface_hub import snapshot_download
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone
from transformers import (AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForSemanticSegmentation)

images = torch.load("images.pt")
found = {}
with torch.no_grad():
    found["adapted timm"] = timm.create_model("hf-hub:me/adapted", pretrained=True).eval()(images)
    wrapped = AutoModel.from_pretrained("me/adapted").eval()
    found["adapted transformers"] = wrapped(images).pooler_output
    backbone, origin = load_backbone("test_resnet", init="me/adapted")
    found["adapted tpssl_hf"] = backbone.eval()(images)
    assert origin.kind == "hub" and origin.revision == sys.argv[1] and origin.license == "mit", origin
    own = wrapped.timm_model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in backbone.state_dict().items())
    older, origin = load_backbone("test_resnet", init=f"me/moved@{sys.argv[2]}")
    found["moved at its first commit"] = older.eval()(images)
    assert origin.revision == sys.argv[2]
    found["classifier timm"] = timm.create_model("hf-hub:me/classifier", pretrained=True).eval()(images)
    classifier = AutoModelForImageClassification.from_pretrained("me/classifier").eval()
    found["classifier transformers"] = classifier(images).logits
    assert classifier.config.id2label[3] == "3" and AutoImageProcessor.from_pretrained("me/classifier")
    segmenter = AutoModelForSemanticSegmentation.from_pretrained("me/segmenter").eval()
    found["segmenter transformers"] = segmenter(images).logits
    for name in ("me/nowhere", "me/adapted@nowhere"):
        try:
            load_backbone("test_resnet", init=name)
        except InputError as error:
            assert "the Hub did not deliver it" in str(error), error
        else:
            raise AssertionError(name)
for block in open("snippets.txt").read().split("#####"):
    exec(compile(block, "snippet", "exec"), {})
torch.save(found, "found.pt")
"""


def expected(runs: dict[str, Path], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the runs' own folders give."""
    import timm
    from transformers import AutoModelForSemanticSegmentation

    with torch.no_grad():
        found = {
            kind: timm.create_model(f"local-dir:{runs[kind] / 'model'}", pretrained=True).eval()(images)
            for kind in ("adapted", "classifier")
        }
        segmenter = AutoModelForSemanticSegmentation.from_pretrained(runs["segmenter"] / "model").eval()
        return found | {"segmenter": segmenter(images).logits, "moved": found["adapted"]}


def test_what_is_pushed_loads_everywhere_and_gives_the_same(
    runs: dict[str, Path], hub: LoopbackHub, api: HfApi, tmp_path: Path
) -> None:
    for kind, run in runs.items():
        publish_run(run, f"me/{kind}", PublishConfig(license="mit"), api=api, say=str)
    for kind in ("adapted", "classifier"):
        publish_run(runs[kind], "me/moved", PublishConfig(license="mit"), api=api, say=str)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    Image.new("RGB", (40, 36), (90, 120, 30)).save(tmp_path / "image.png")
    cards = [hub.head(f"me/{kind}")["README.md"].decode() for kind in runs]
    blocks = [block for card in cards for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]
    (tmp_path / "snippets.txt").write_text("#####".join(blocks))
    heads = [hub.repositories["me/adapted"].branches["main"], list(hub.repositories["me/moved"].commits)[1]]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-c", PULL, *heads],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    own = expected(runs, images)
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == 7
    for name, outputs in found.items():
        # The weights are the same bits; transformers leaves them mapped, where other kernels take over.
        torch.testing.assert_close(outputs, own[name.split()[0]], rtol=1e-5, atol=1e-4, msg=name)
        assert "transformers" in name or torch.equal(outputs, own[name.split()[0]]), name


@pytest.fixture(scope="module")
def recipe() -> Any:
    """recipes/publish.py as a module."""
    return load_script("recipes/publish.py")


def test_the_recipe_shows_what_it_would_push(
    recipe: Any, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = [str(runs["classifier"]), "--repo", "me/x", "--license", "mit", "--dry_run", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["publish.py", *arguments])
    assert recipe.main() == 0
    assert "nothing was pushed" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["recipe"] == "ssl_classify"
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlibrary_name: timm")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no run is given"),
        (["RUN"], "no repository is given; add `--repo owner/name`"),
        (["RUN", "--repo", "me/x", "--licence", "mit"], "the nearest known one is 'license'"),
        (["RUN", "--repo", "me/x", f"--token={TOKEN}"], "looks like an access token"),
        (["RUN", "--repo", "me/x", "--timeout", "0"], "not a number of seconds above 0"),
        (["RUN", "--repo", "me/x"], "--license apache-2.0"),
    ],
)
def test_bad_settings_are_one_sentence_without_the_token(
    arguments: list[str], sentence: str, recipe: Any, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(runs["adapted"]) if argument == "RUN" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["publish.py", *given])
    with pytest.raises(InputError, match=sentence) as caught:
        recipe.main()
    assert TOKEN not in str(caught.value)
