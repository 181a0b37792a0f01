"""Make the small models of demo.yaml from the embedded data, with the package's own recipes.

    python spaces/demo/app.py --build              # some minutes on two CPU cores; then the demo starts
    python spaces/demo/app.py --build --steps 3    # only to see that everything runs

Each recipe continues an unfinished run, or says that it is finished, so the same command goes on where it was stopped.
"""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from demo_examples import agree
from demo_models import Classifier, load_classifier
from PIL import Image

from tpssl_hf.config.digits import DIGITS_SIZE
from tpssl_hf.data.folders import digit_images
from tpssl_hf.data.scenes import load_digit_scenes
from tpssl_hf.errors import InputError

FOLDER = Path("outputs/demo")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
THUMBNAIL = 48  # pixels
EXAMPLE = 256  # pixels
EXAMPLE_DIGITS, EXAMPLE_SCENES = 10, 4
NEIGHBORS, EXAMPLES, LOG = "neighbors.npz", "examples", "beside.log"


def build(folder: Path, steps: int | None = None) -> None:
    """Run the recipes, into ``folder``: what follows target pretraining, and beside it what does not.

    Args:
        folder: where the runs go, one sub-folder each.
        steps: length of every training run; that of the recipes' defaults if None.

    Raises:
        InputError: if the recipes are not there, or one fails; it has said why.
    """
    if not RECIPES.is_dir():
        raise InputError(f"there are no recipes in {RECIPES}; --build works in a checkout of the repository.")
    from tpssl_hf.convert.starter import starter  # only here: a published Space builds nothing

    adapted, length = folder / "adapted", [] if steps is None else [f"--max_steps={steps}"]
    weights = starter()
    base = {**weights, "image_size": DIGITS_SIZE} if weights else {"init": "random"}
    start = [f"--{name}={value}" for name, value in base.items()]
    learned = ["--select=last", *length]  # both pictures of a pair are of what was finetuned
    shown = [
        ["target_pretrain.py", f"--output_dir={adapted}", *length],
        ["ssl_classify.py", f"--init={adapted / 'model'}", f"--output_dir={folder / 'adapted_classifier'}", *learned],
        ["verdict.py", f"--adapted={adapted}", f"--output_dir={folder / 'verdict'}"],
        ["analyze.py", "--analysis=tsne,drift", f"--adapted={adapted}", f"--output_dir={folder / 'analysis'}"],
    ]
    beside = [
        ["ssl_classify.py", *start, f"--output_dir={folder / 'base_classifier'}", *learned],
        ["ssl_segment.py", f"--output_dir={folder / 'segmenter'}", *length],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as second:
        row = second.submit(run_row, beside, stop, folder / LOG)
        run_row(shown, stop)
        row.result()
    print(f"\n{folder / NEIGHBORS}, {folder / EXAMPLES}", flush=True)
    both = [load_classifier(str(folder / f"{name}_classifier" / "model")) for name in ("base", "adapted")]
    write_neighbors(folder / NEIGHBORS, both[1])
    write_examples(folder / EXAMPLES, *both)


def run_row(recipes: Sequence[list[str]], stop: threading.Event, log: Path | None = None) -> None:
    """Run recipes one after the other, on half of the cores, until ``stop`` is set; a failure sets it.

    Args:
        recipes: names with their arguments.
        stop: shared with the row beside this one.
        log: a file for their output, which is shown if None.

    Raises:
        InputError: if a recipe fails.
    """
    threads = max(1, (os.cpu_count() or 1) // 2)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("a", encoding="utf-8") if log else nullcontext() as output:
        for recipe, *arguments in recipes:
            if stop.is_set():
                return
            print(f"\nrecipes/{recipe} {' '.join(arguments)}{f' > {log}' if log else ''}", flush=True)
            command = [sys.executable, str(RECIPES / recipe), *arguments]
            code = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode
            if code:
                stop.set()
                raise InputError(
                    f"recipes/{recipe} ended with exit code {code}, its reason is {f'in {log}' if log else 'above'}; "
                    "mend that and give the same command again, it continues from there."
                )


def write_neighbors(path: Path, classifier: Classifier) -> None:
    """Write the training digits, small, with their classes and their features by ``classifier``; no pickle.

    The file holds ``features`` (N, D) float16 of length one, ``thumbnails`` (N, S, S, 3) uint8 and ``captions`` (N,).
    """
    gray, classes = digit_images("train", "digits")
    images = [Image.fromarray(image).convert("RGB") for image in gray]
    features = np.concatenate([classifier.features(images[at : at + 64]) for at in range(0, len(images), 64)])
    side = (THUMBNAIL, THUMBNAIL)
    thumbnails = [np.asarray(image.resize(side, Image.Resampling.BICUBIC)) for image in images]
    np.savez_compressed(
        path, features=features.astype(np.float16), thumbnails=np.stack(thumbnails), captions=classes.astype(str)
    )


def write_examples(folder: Path, base: Classifier, adapted: Classifier) -> None:
    """Write digits to try as ``digit_1.png`` to ``digit_10.png``, enlarged and smoothed.

    They are of the test split, which no model here has learned from: the first ones on which two classifiers differ,
    half of all where there are as many of both, and the first ones on which they agree.
    """
    gray, _ = digit_images("test", "digits")
    images = [Image.fromarray(one).resize((EXAMPLE, EXAMPLE), Image.Resampling.BICUBIC).convert("RGB") for one in gray]
    same = [agree(base, adapted, image) for image in images]
    alike = [image for image, agreed in zip(images, same, strict=True) if agreed]
    differ = [image for image, agreed in zip(images, same, strict=True) if not agreed]
    count = max(EXAMPLE_DIGITS // 2, EXAMPLE_DIGITS - len(alike))
    chosen = (differ[:count] + alike)[:EXAMPLE_DIGITS]
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(chosen, 1):
        image.save(folder / f"digit_{number}.png")
    print(f"the two classifiers differ on {same.count(False)} of {len(same)} test images")


def scene_images() -> dict[str, Image.Image]:
    """Return scenes to try, by file name: the first ones of the test split, which no model here has learned from.

    Each of their pixels is a square, so that shrinking them gives back what they were.
    """
    scenes, _ = load_digit_scenes("test")
    found = {}
    for number in range(EXAMPLE_SCENES):
        image = Image.open(io.BytesIO(scenes[number]["image"]["bytes"]))
        found[f"scene_{number}.png"] = image.resize((EXAMPLE, EXAMPLE), Image.Resampling.NEAREST)
    return found
