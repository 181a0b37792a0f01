"""The images of target pretraining: stored, or streamed."""

from accelerate import Accelerator

from tpssl_hf.config.shared import DataConfig
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.sources import Source
from tpssl_hf.data.streams import ImageStream, StreamingImages
from tpssl_hf.errors import InputError
from tpssl_hf.training.open_data import open_image_cache
from tpssl_hf.training.run_dir import RunDir


def open_images(
    source: Source,
    data: DataConfig,
    share: int,
    seed: int,
    accelerator: Accelerator,
    run: RunDir | None,
    crop_scale: tuple[float, float],
) -> tuple[ImageCache | None, ImageStream | StreamingImages]:
    """Scan and store the images once, or stream them; the main process says what was found and writes scan.json.

    Args:
        source: what :func:`tpssl_hf.data.sources.load_source` found.
        data: configuration.
        share: images of one batch of this process.
        seed: of the order.
        accelerator: which process of how many this is.
        run: the run's folder, on the main process.
        crop_scale: as for :func:`tpssl_hf.training.open_data.open_image_cache`.

    Returns:
        The store, or None when streaming, and the endless stream over it.
    """
    place_in_world = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    if data.streaming and data.limit_images:
        raise InputError("limit_images needs the whole data set at hand; with streaming give --max_steps instead.")
    if data.streaming:
        return None, StreamingImages(
            source,
            image_size=data.image_size,
            batch_size=share,
            seed=seed,
            num_workers=data.num_workers,
            cache_scale=data.cache_scale,
            **place_in_world,
        )
    store = open_image_cache(source, data, accelerator, run, crop_scale=crop_scale)
    return store, ImageStream(store, batch_size=share, seed=seed, **place_in_world)
