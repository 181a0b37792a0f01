import gc
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from tpssl_hf.data.class_stream import ClassStream
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.data.streams import EndlessStream, ImageStream, StreamingImages
from tpssl_hf.errors import InputError

MakeTable = Callable[..., datasets.Dataset]


@pytest.fixture
def store(table: MakeTable, tmp_path: Path) -> ImageCache:
    """53 images; image ``n`` is filled with the value n."""
    table(53).save_to_disk(tmp_path / "set")
    source = load_source(str(tmp_path / "set"))
    opened, _ = load_image_cache(
        source, image_size=8, cache_budget=2**20, num_workers=1, progress=False, cache_dir=tmp_path / "stores"
    )
    return opened


@pytest.fixture
def streamed(table: MakeTable, tmp_path: Path) -> Callable[..., Source]:
    """A parquet folder of 60 images in so many files, streamed."""

    def make(files: int, bad: int = 0) -> Source:
        folder = tmp_path / f"streamed-{files}-{bad}"
        folder.mkdir()
        for number in range(files):
            count = 60 // files
            part = table(count, number * count).cast_column("image", datasets.Image(decode=False))
            cells = part["image"][:]
            for position in range(bad // files):
                cells[position] = {"bytes": b"damaged", "path": None}
            part.remove_columns("image").add_column("image", cells).cast_column("image", datasets.Image()).to_parquet(
                folder / f"train-{number:05d}-of-{files:05d}.parquet"
            )
        return load_source(str(folder), streaming=True)

    return make


def take(stream: ImageStream | StreamingImages, count: int, start_step: int = 0) -> list[ImageBatch]:
    batches = stream.batches(start_step)
    taken = list(itertools.islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return taken


def assert_same(one: ImageBatch, other: ImageBatch) -> None:
    for name in ("pixels", "sizes", "index", "epoch"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def first_values(batches: list[ImageBatch]) -> list[int]:
    return [value for batch in batches for value in batch.pixels[:, 0, 0, 0].tolist()]


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tpssl")]


def test_every_epoch_is_another_permutation(store: ImageCache) -> None:
    stream = ImageStream(store, batch_size=8, seed=1)
    assert stream.steps_per_epoch == 6
    orders = [stream.order(epoch).tolist() for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(53))
    assert orders[0] == orders[2] != orders[1]
    batches = take(stream, 12)
    seen = [set(torch.cat([batch.index for batch in batches[part]]).tolist()) for part in (slice(6), slice(6, 12))]
    assert len(seen[0]) == len(seen[1]) == 48 and seen[0] != seen[1]
    assert [int(batch.epoch[0]) for batch in batches] == [0] * 6 + [1] * 6
    assert first_values(batches) == torch.cat([batch.index for batch in batches]).tolist()


def test_seed_decides_the_order(store: ImageCache) -> None:
    orders = [ImageStream(store, batch_size=8, seed=seed).order(0).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_processes_together_see_what_one_sees(store: ImageCache) -> None:
    alone = take(ImageStream(store, batch_size=8, seed=1), 14)
    ranks = [
        take(ImageStream(store, batch_size=4, seed=1, process_index=rank, num_processes=2), 14) for rank in (0, 1)
    ]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.index, torch.cat([first.index, second.index]))
        assert torch.equal(whole.pixels, torch.cat([first.pixels, second.pixels]))


@pytest.mark.parametrize("start_step", [1, 5, 6, 13])
def test_starting_later_equals_skipping(store: ImageCache, start_step: int) -> None:
    stream = ImageStream(store, batch_size=8, seed=1)
    for whole, resumed in zip(take(stream, 16)[start_step:], take(stream, 16 - start_step, start_step), strict=True):
        assert_same(whole, resumed)


def test_subset_stays_within_its_indices(store: ImageCache) -> None:
    chosen = np.array([3, 9, 27, 50])
    batches = take(ImageStream(store, batch_size=2, seed=0, indices=chosen), 6)
    assert {int(number) for batch in batches for number in batch.index} == set(chosen.tolist())


def test_fewer_images_than_a_batch_are_refused(store: ImageCache) -> None:
    with pytest.raises(InputError, match=r"53 images of 'set' are fewer than one batch of 64 \(32 x 2 processes\)"):
        ImageStream(store, batch_size=32, seed=0, num_processes=2)


def test_endless_batches_leave_nothing_out_and_go_over_the_end_of_an_epoch(store: ImageCache) -> None:
    stream = EndlessStream(store, batch_size=7, seed=3)
    seen = [images for step in range(2 * len(store)) for images in [stream.batch(step)]]
    index, epoch = torch.cat([p.index for p in seen]), torch.cat([p.epoch for p in seen])
    for number in range(14):  # 2N batches of 7 are 14 epochs
        assert sorted(index[epoch == number].tolist()) == list(range(len(store)))
    assert any(len(set(p.epoch.tolist())) == 2 for p in seen)


def test_few_images_fill_large_batches_with_new_epochs(store: ImageCache) -> None:
    images = EndlessStream(store, batch_size=8, seed=3, indices=np.array([2, 5, 7])).batch(4)
    assert set(images.index.tolist()) == {2, 5, 7} and set(images.epoch.tolist()) == {10, 11, 12, 13}
    assert len(set(zip(images.index.tolist(), images.epoch.tolist(), strict=True))) == 8


def test_endless_streams_of_two_processes_see_together_what_one_sees(store: ImageCache) -> None:
    whole = EndlessStream(store, batch_size=6, seed=3)
    parts = [EndlessStream(store, batch_size=3, seed=3, process_index=r, num_processes=2) for r in (0, 1)]
    for step in (0, 1, 9):
        together = [part.batch(step) for part in parts]
        assert torch.equal(whole.batch(step).index, torch.cat([images.index for images in together]))
        assert torch.equal(whole.batch(step).pixels[:3], together[0].pixels)


def test_an_endless_stream_entered_later_gives_the_same_batches(store: ImageCache) -> None:
    stream = EndlessStream(store, batch_size=5, seed=3)
    opened = stream.batches(7)
    assert torch.equal(next(opened).index, EndlessStream(store, batch_size=5, seed=3).batch(7).index)
    opened.close()  # type: ignore[attr-defined]


def test_an_endless_stream_of_no_images_is_refused(store: ImageCache) -> None:
    with pytest.raises(InputError, match="no image"):
        EndlessStream(store, batch_size=2, seed=0, indices=np.array([], dtype=np.int64))


def skewed(store: ImageCache, **keys: Any) -> ClassStream:
    indices = np.arange(3, 43)
    labels = np.where(indices < 38, 0, np.where(indices < 41, 1, 4))  # 35, 3 and 2 images, no class 2 and 3
    return ClassStream(store, indices=indices, labels=labels, **{"batch_size": 5, "seed": 3} | keys)


def test_every_class_comes_equally_often_and_every_image_of_it(store: ImageCache) -> None:
    seen = [skewed(store).batch(step) for step in range(42)]  # 210 images: 70 of each class
    index, epoch = torch.cat([p.index for p in seen]), torch.cat([p.epoch for p in seen])
    times = np.bincount(index.numpy(), minlength=43)
    assert times[3:38].tolist() == [2] * 35 and times[38:41].tolist() in ([24, 23, 23], [23, 24, 23], [23, 23, 24])
    assert times[41:].tolist() == [35, 35] and times[:3].sum() == 0
    assert len(set(zip(index.tolist(), epoch.tolist(), strict=True))) == 210, "an image comes back with new draws"
    for start in range(0, 210, 3):
        assert set(np.searchsorted([38, 41], index[start : start + 3].numpy(), side="right").tolist()) == {0, 1, 2}


def test_streams_by_class_of_two_processes_see_together_what_one_sees_and_are_entered_anywhere(
    store: ImageCache,
) -> None:
    whole = skewed(store, batch_size=6)
    parts = [skewed(store, batch_size=3, process_index=r, num_processes=2) for r in (0, 1)]
    for step in (9, 0, 1):
        together = [part.batch(step) for part in parts]
        assert torch.equal(whole.batch(step).index, torch.cat([images.index for images in together]))
        assert torch.equal(whole.batch(step).epoch, torch.cat([images.epoch for images in together]))


def test_prefetching_thread_ends_with_the_stream(store: ImageCache) -> None:
    batches = ImageStream(store, batch_size=8, seed=1).batches(0)
    next(batches)
    assert our_threads()
    batches.close()  # type: ignore[attr-defined]
    assert not our_threads()
    forgotten = ImageStream(store, batch_size=8, seed=1).batches(0)
    next(forgotten)
    del forgotten
    gc.collect()
    assert not our_threads()


def test_prefetching_stays_two_ahead_and_passes_errors_on(store: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ImageStream(store, batch_size=8, seed=1)
    asked = []

    def batch(step: int) -> ImageBatch:
        asked.append(step)
        if step == 3:
            raise InputError("the fourth batch is broken")
        return real(step)

    real = stream.batch
    monkeypatch.setattr(stream, "batch", batch)
    batches = stream.batches(0)
    next(batches)
    time.sleep(0.2)
    assert asked == [0, 1, 2]
    with pytest.raises(InputError, match="fourth"):
        list(batches)
    assert not our_threads()


def test_streamed_batches_cover_every_epoch_in_another_order(streamed: Callable[..., Source]) -> None:
    batches = take(StreamingImages(streamed(2), image_size=8, batch_size=10, seed=3, num_workers=2), 12)
    first, second = first_values(batches[:6]), first_values(batches[6:])
    assert sorted(first) == sorted(second) == list(range(60)) and first != second
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(120))
    assert torch.cat([batch.epoch for batch in batches]).tolist() == [0] * 60 + [1] * 60
    assert not our_threads()


@pytest.mark.parametrize("start_step", [1, 6, 9])
def test_streamed_resume_is_exact(streamed: Callable[..., Source], start_step: int) -> None:
    source = streamed(2, bad=2)
    whole = take(StreamingImages(source, image_size=8, batch_size=8, seed=3, num_workers=1), 12)
    again = StreamingImages(source, image_size=8, batch_size=8, seed=3, num_workers=2)
    for expected, resumed in zip(whole[start_step:], take(again, 12 - start_step, start_step), strict=True):
        assert_same(expected, resumed)


@pytest.mark.parametrize("files", [1, 2, 3])
def test_streaming_processes_share_nothing(streamed: Callable[..., Source], files: int) -> None:
    source = streamed(files)
    ranks = [
        take(
            StreamingImages(
                source, image_size=8, batch_size=5, seed=3, num_workers=1, process_index=rank, num_processes=2
            ),
            12,
        )
        for rank in (0, 1)
    ]
    for epoch in (slice(6), slice(6, 12)):
        assert sorted(first_values(ranks[0][epoch]) + first_values(ranks[1][epoch])) == list(range(60))
    indices = [int(number) for rank in ranks for batch in rank for number in batch.index]
    assert sorted(indices) == list(range(120))


def test_streaming_leaves_bad_images_out_and_counts_them(streamed: Callable[..., Source]) -> None:
    stream = StreamingImages(streamed(2, bad=2), image_size=8, batch_size=10, seed=3, num_workers=1)
    values = first_values(take(stream, 30))
    assert not {0, 30} & set(values) and len(values) == 300
    assert stream.seen >= 300 and 8 <= len(stream.bad) <= 0.05 * stream.seen
    assert "format" in stream.bad[0]["reason"]


def test_streaming_stops_when_many_are_bad(streamed: Callable[..., Source]) -> None:
    stream = StreamingImages(streamed(2, bad=6), image_size=8, batch_size=10, seed=3, num_workers=1)
    with pytest.raises(InputError, match="cannot be read"):
        take(stream, 30)
    assert 200 <= stream.seen < 230 and not our_threads()


def test_streaming_needs_a_streamed_source_and_images_for_everyone(
    streamed: Callable[..., Source], store: ImageCache
) -> None:
    with pytest.raises(InputError, match="turn streaming on"):
        StreamingImages(load_source("digits"), image_size=8, batch_size=5, seed=0, num_workers=1)
    hungry = StreamingImages(
        load_source("digits", split="test", streaming=True),
        image_size=8,
        batch_size=5,
        seed=0,
        num_workers=1,
        process_index=300,
        num_processes=301,
    )
    with pytest.raises(InputError, match="gets no images"):
        take(hungry, 1)
