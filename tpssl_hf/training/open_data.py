"""Open the images of a run."""

import sys
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from tpssl_hf.augment.enlarged_crops import enlarged_share
from tpssl_hf.config.shared import DataConfig
from tpssl_hf.data.conversion import Range
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.training.run_dir import RunDir


def open_source(data: DataConfig, *, several_labels: bool = False) -> Source:
    """Find the images that the keys name, with several labels each if ``several_labels``.

    Raises:
        InputError: as :func:`tpssl_hf.data.sources.load_source` does.
    """
    return load_source(
        data.dataset,
        split=data.split,
        dataset_config=data.dataset_config,
        image_column=data.image_column,
        label_column=data.label_column,
        streaming=data.streaming,
        several_labels=several_labels,
    )


def open_image_cache(
    source: Source,
    data: DataConfig,
    accelerator: Accelerator,
    run: RunDir | None,
    *,
    part: str = "",
    shorter_side: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    wide_range: Range | None = None,
) -> ImageCache:
    """Scan and store the images once; the main process says what was found and writes ``scan.json``.

    ``part`` says which images of the run these are where it has several, and tells their reports apart.
    ``shorter_side`` and ``wide_range`` are those of :func:`tpssl_hf.data.image_cache.load_image_cache`. ``crop_scale``
    is the area of the crops that training takes at random, as shares of the image's; None where it takes none.
    """
    with accelerator.local_main_process_first():
        store, report = load_image_cache(
            source,
            image_size=data.image_size,
            cache_scale=data.cache_scale,
            shorter_side=shorter_side,
            wide_range=wide_range,
            cache_budget=int(data.cache_budget * 2**30),
            cache_dir=Path(data.cache_dir) if data.cache_dir else None,
            limit_images=data.limit_images,
            num_workers=data.num_workers,
            progress=accelerator.is_main_process,
            allow_unlabeled=True,
        )
    if crop_scale is not None:
        stored, full = (
            enlarged_share(sizes, data.image_size, crop_scale) for sizes in (store.sizes, store.full_sizes)
        )
        report = replace(report, enlarged_crops=stored, enlarged_crops_at_full_size=full)
    if run:
        report.write(run.path / (f"scan_{part}.json" if part else "scan.json"))
        sys.stdout.write(f"{f'{part} images of ' if part else ''}{report.summary()}\n")
    return store
