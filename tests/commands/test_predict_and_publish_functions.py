"""predict, embed and publish as functions: the same keys and the same work as the commands."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tpssl_hf.commands import embed, predict, publish
from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.tasks.predict import run
from tpssl_hf.tasks.predict.config import EmbedConfig, PredictConfig


class Stop(Exception):
    """Ends a call where its arguments are known."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the work is called with, instead of being done."""
    found: list[Any] = []

    def note(*arguments: Any) -> Any:
        found.append(arguments)
        raise Stop

    monkeypatch.setattr(run, "predict", note)
    monkeypatch.setattr(run, "embed", note)
    monkeypatch.setattr(publish, "publish_run", note)
    return found


def test_predict_and_its_command_resolve_to_the_same_keys(given: list[Any], tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("batch_size: 4\ntop_k: 2\n")
    keys = {"config": tmp_path / "keys.yaml", "overlays": True, "limit_images": 3, "top_k": 3}
    with pytest.raises(Stop):
        predict.predict("some/model", tmp_path, **keys)
    with pytest.raises(Stop):
        predict.main(
            ["--model=some/model", f"--dataset={tmp_path}", *(f"--{name}={value}" for name, value in keys.items())]
        )
    wanted = PredictConfig("some/model", str(tmp_path), limit_images=3, batch_size=4, top_k=3, overlays=True)
    assert given == [(wanted,), (wanted,)]


def test_the_first_words_are_model_and_images(given: list[Any]) -> None:
    with pytest.raises(Stop):
        predict.main(["some/model", "photos", "--top_k=3"])
    with pytest.raises(Stop):
        embed.main(["some/model", "--dataset", "photos"])
    assert given == [(PredictConfig("some/model", "photos", top_k=3),), (EmbedConfig("some/model", "photos"),)]
    with pytest.raises(InputError, match="'more' is one word too many"):
        predict.main(["some/model", "photos", "more"])


@pytest.mark.parametrize(("command", "work"), [(predict, "predict"), (embed, "embed")])
def test_a_stopped_command_says_that_it_continues(
    command: Any, work: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, work, stopped)
    assert command.main(["some/model", "photos"]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_embed_and_its_command_resolve_to_the_same_keys(given: list[Any], tmp_path: Path) -> None:
    finished = SimpleNamespace(model_path=tmp_path / "model")
    with pytest.raises(Stop):
        embed.embed(finished, "photos", device="cpu", output_dir=None)
    with pytest.raises(Stop):
        embed.main([f"--model={tmp_path / 'model'}", "--dataset", "photos", "--device", "cpu"])
    wanted = EmbedConfig(str(tmp_path / "model"), "photos", device="cpu")
    assert given == [(wanted,), (wanted,)]


def test_publish_and_its_command_resolve_to_the_same_keys(given: list[Any]) -> None:
    with pytest.raises(Stop):
        publish.publish(Path("outputs/mine"), "me/mine", license="mit", private=True)
    with pytest.raises(Stop):
        publish.main(["outputs/mine", "--repo=me/mine", "--license=mit", "--private"])
    wanted = PublishConfig(license="mit", private=True)
    assert given == [(Path("outputs/mine"), "me/mine", wanted), (Path("outputs/mine"), "me/mine", wanted)]


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: predict.predict("m", "photos", batchsize=3), "'batchsize'; the nearest known one is 'batch_size'"),
        (lambda: embed.embed("m", "photos", ouput_dir="x"), "'ouput_dir'; the nearest known one is 'output_dir'"),
        (lambda: publish.publish("m", "me/m", licence="mit"), "'licence'; the nearest known one is 'license'"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_nearest(call: Any, nearest: str, given: list[Any]) -> None:
    with pytest.raises(InputError, match=f"unknown key {nearest}"):
        call()
    assert not given


def test_publish_takes_runs_only_with_their_keys(given: list[Any]) -> None:
    with pytest.raises(InputError, match="run and metric are given"):
        publish.publish("outputs/mine", "me/mine", metric="somewhere")
    with pytest.raises(InputError, match="no repository is given"):
        publish.publish("outputs/mine", "")


def test_arguments_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EmbedConfig().batch_size = 3  # type: ignore[misc]
