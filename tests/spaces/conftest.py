import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "spaces/demo"))  # no package: its modules find each other there


def tiny_demo() -> Any:
    """tiny_demo.py as a module, where there is gradio."""
    pytest.importorskip("gradio", reason="the demo needs gradio: `uv run --extra demo pytest`")
    import tiny_demo

    return tiny_demo


@pytest.fixture(scope="session", autouse=True)
def uploads_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what gradio stores of uploads and answers out of the machine's own temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield


@pytest.fixture(scope="session")
def demo_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny models and images of everything the demo can show."""
    tiny = tiny_demo()
    from demo_config import Changes, ClassifierPair, DemoConfig, SegmenterChoice
    from demo_models import load_classifier

    folder = tmp_path_factory.mktemp("demo")
    base, adapted = (tiny.make_classifier(folder / name, seed) for seed, name in enumerate(("base", "adapted")))
    images = [tiny.image_of(seed, 16) for seed in range(6)]
    np.savez(
        folder / "neighbors.npz",
        features=load_classifier(adapted).features(images).astype(np.float16),
        thumbnails=np.stack([np.asarray(image) for image in images]),
        captions=np.array([f"number {seed}" for seed in range(6)]),
    )
    verdict = folder / "verdict"
    verdict.mkdir()
    (verdict / "results.json").write_text('{"sentence": "Use the adapted weights."}', encoding="utf-8")
    (verdict / "verdict.md").write_text("# Verdict\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", encoding="utf-8")
    for name in ("verdict/verdict", "tsne", "drift", "example"):
        tiny.image_of(7, 64).save(folder / f"{name}.png")
    return DemoConfig(
        title="Tiny demo",
        sentence="Models with random weights.",
        classifiers=[
            ClassifierPair(
                "pets", base, adapted, str(folder / "neighbors.npz"), ["example.png"], about="Pets, it says."
            ),
            ClassifierPair("pets, turned round", adapted, base),
        ],
        segmenters=[SegmenterChoice("pets' outlines", tiny.make_segmenter(folder / "segmenter"), 64, ["example.png"])],
        changes=[Changes("pets", "tsne.png", "drift.png", "verdict")],
        folder=folder,
    )


@pytest.fixture(scope="session")
def demo_url(demo_config: Any) -> Iterator[str]:
    """Address of the running demo of ``demo_config``, on a free port of this machine."""
    tiny = tiny_demo()
    with tiny.launched(demo_config) as url:
        yield url
