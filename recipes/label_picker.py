r"""Choose which images to label next, by the features of an adapted backbone (TypiClust, ProbCover).

    python recipes/label_picker.py                              # 40 of the embedded digits
    python recipes/label_picker.py --dataset path/to/images --init outputs/mine --count 40
    python recipes/label_picker.py --config outputs/to_label/config.yaml \
        --labeled outputs/to_label/to_label.csv --output_dir outputs/to_label_next    # the next 40

Labels that the data set may have are not looked at. The folder --output_dir then holds contact_sheet.png, and
to_label.csv and to_label.json: fill in the empty labels of either (names or numbers from 0), and give it to
recipes/ssl_classify.py as --labels. Entries left empty are passed over. With --labeled the files hold those labels
as well, and classes that have few are preferred. A folder that holds a finished list is never written to again.
"""

from tpssl_hf.process import prepare_process, run_cli

THREADS = prepare_process()  # before torch is imported: OpenMP reads its settings once

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from tpssl_hf.active_learning.strategies import NONE_KNOWN, Known, choose_images
from tpssl_hf.analysis.common import located, open_split
from tpssl_hf.analysis.config import LabelPickerConfig
from tpssl_hf.config.parser import config_files, parse_config, take
from tpssl_hf.config.shared import CARRY_OUT_KEYS, DataConfig, RunConfig
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.image_names import row_digests, rows_by_file
from tpssl_hf.data.label_splits import Labeled, read_labels
from tpssl_hf.data.sources import Source
from tpssl_hf.evaluation.feature_cache import features_of
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.plots.contact_sheet import draw_contact_sheet
from tpssl_hf.training.accelerator import describe, make_accelerator
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir

GROUPS: list[type] = [LabelPickerConfig, DataConfig]
DIGITS_RUN = Path("outputs/digits_byol")  # where the default target pretraining leaves its weights
DIGITS_SIZE = 32


def main() -> int:
    """Settle the settings, choose images, leave list and contact sheet behind; returns the exit code."""
    settings = read_settings(sys.argv[1:])
    accelerator = make_accelerator(RunConfig(output_dir=settings["output_dir"], precision="fp32"))
    with RunDir(Path(settings["output_dir"]), settings, ignore=CARRY_OUT_KEYS) as run:
        if run.finished:
            print(f"{run.path} holds the finished list of these settings; it is left as it is.")
            return 0
        print(describe(accelerator, THREADS))
        print(pick(settings, accelerator, run))
    return 0


def read_settings(arguments: list[str]) -> dict[str, Any]:
    """Resolve every key; the embedded digits are the default where neither a data set nor a file is given."""
    defaults: dict[str, Any] = {}
    if not config_files(arguments) and "--dataset" not in [argument.partition("=")[0] for argument in arguments]:
        adapted = (DIGITS_RUN / "model").is_dir()
        defaults = {"dataset": "digits", "image_size": DIGITS_SIZE, "init": str(DIGITS_RUN) if adapted else "random"}
    return parse_config(GROUPS, arguments, description=__doc__ or "", defaults=defaults)


def pick(settings: dict[str, Any], accelerator: Accelerator, run: RunDir) -> str:
    """Choose the images and write everything; returns the summary for people."""
    options, began = take(LabelPickerConfig, settings), time.perf_counter()
    source, store = open_split(settings, settings["split"], accelerator, run)
    # Not choose_labels: it refuses labels that leave a class without any, which more images are wanted for.
    labeled = read_labels(Path(options.labeled), store, source) if options.labeled else None
    for note in (f"labels so far: {labeled.counts(len(store))}", *labeled.notes) if labeled else ():
        print(f"  {note}")
    known = Known(labeled.indices, labeled.labels, len(labeled.class_names)) if labeled else NONE_KNOWN
    features, origin = np.zeros((len(store), 1), dtype=np.float32), None
    if options.strategy != "random":
        features, origin = extracted(options, settings, store, accelerator)
        if note := origin.size_note(settings["image_size"]):
            print(note)
    chosen = choose_images(features, options.count, strategy=options.strategy, seed=options.seed, known=known)
    names = names_of(source, store, chosen)
    write_lists(run.path, options, source, store, chosen, labeled)
    images = [shown(store, index) for index in chosen.tolist()]
    draw_contact_sheet(run.path / "contact_sheet.png", images, [(f"{n}", name) for n, name in enumerate(names, 1)])
    results = run_facts(
        recipe="label_picker",
        strategy=options.strategy,
        dataset={"name": source.name, "fingerprint": store.fingerprint, "images": len(store)},
        labeled_before=len(known.indices),
        rows=store.rows[chosen].tolist(),
        init=origin.as_dict() if origin else None,
        seed=options.seed,
        seconds=time.perf_counter() - began,
        config=settings,
    )
    run.write_json(RESULTS, results)
    return summary(run.path, results)


def extracted(
    options: LabelPickerConfig, settings: dict[str, Any], store: ImageCache, accelerator: Accelerator
) -> tuple[np.ndarray, WeightsSource]:
    """Features (N, D) of every image, kept on disk, and where the weights come from."""
    init, backbone = located(options.init, options.backbone)
    found = features_of(
        store,
        np.arange(len(store)),
        backbone=backbone,
        init=init,
        image_size=settings["image_size"],
        device=accelerator.device,
        seed=options.seed,
        cache_dir=Path(settings["cache_dir"]) / "features" if settings["cache_dir"] else None,
    )
    return found.values, found.origin


def names_of(source: Source, store: ImageCache, indices: np.ndarray) -> list[str]:
    """Return files as paths below the data set's folder, or ``row N`` where the images are no files of their own."""
    files: dict[int, str] = {}
    if source.folder is not None:
        for name, row in rows_by_file(source).items():
            if (source.folder / name).is_file() and len(name) >= len(files.get(row, "")):  # not its last part alone
                files[row] = name
    return [files.get(row, f"row {row}") for row in store.rows[indices].tolist()]


def write_lists(
    folder: Path,
    options: LabelPickerConfig,
    source: Source,
    store: ImageCache,
    chosen: np.ndarray,
    labeled: Labeled | None,
) -> None:
    """Write to_label.csv and to_label.json: the chosen images without labels, then those labeled already."""
    before = labeled.indices if labeled else NONE_KNOWN.indices
    given = [labeled.class_names[number] for number in labeled.labels.tolist()] if labeled else []
    indices = np.concatenate([chosen, before])
    rows, names = store.rows[indices].tolist(), names_of(source, store, indices)
    labels = [None] * len(chosen) + given
    by_file = not any(name == f"row {row}" for name, row in zip(names, rows, strict=True))
    with (folder / "to_label.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", *(["file"] if by_file else ["row", "digest"]), "label"])
        digests = row_digests(source, [] if by_file else rows)  # so that rows of changed data are not taken for these
        known = [[name] for name in names] if by_file else zip(rows, digests, strict=True)
        for number, (where, label) in enumerate(zip(known, labels, strict=True), start=1):
            writer.writerow([number, *where, label or ""])
    entries = zip(rows, names, labels, strict=True)
    content = {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "chosen": f"{options.count} images by {options.strategy}, seed {options.seed}",
        "class_names": list(source.class_names or ()),  # none: those that are filled in
        "labels": [
            {"row": row, **({"file": name} if by_file else {}), "label": label} for row, name, label in entries
        ],
    }
    (folder / "to_label.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shown(store: ImageCache, index: int) -> np.ndarray:
    """(H, W, 3) uint8 pixels of one image as it is stored."""
    image = store.gather(np.array([index]), epoch=0)
    pixels: np.ndarray = image.pixels[0].numpy()
    return pixels


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was chosen and what to type next."""
    settings, count = results["config"], len(results["rows"])
    init, backbone = located(settings["init"], settings["backbone"])
    prior = f" beside the {results['labeled_before']} labeled already" if results["labeled_before"] else ""
    return "\n".join(
        [
            f"\n{count} of {results['dataset']['images']:,} images of {results['dataset']['name']} to label"
            f"{prior} ({results['strategy']}), in {results['seconds']:.0f} s",
            f"  look at       {folder / 'contact_sheet.png'}",
            f"  fill in       the column label of {folder / 'to_label.csv'} (the number is the one on the sheet)",
            f"  next          accelerate launch recipes/ssl_classify.py --dataset {settings['dataset']} "
            f"--labels {folder / 'to_label.csv'} --init {init} --backbone {backbone} "
            f"--image_size {settings['image_size']}",
        ]
    )


if __name__ == "__main__":
    run_cli(main)
