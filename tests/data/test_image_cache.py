import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from tpssl_hf.data import image_cache_writer as build
from tpssl_hf.data import reading
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.scan import ScanReport
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError

MakeFolder = Callable[..., Path]
MakeTable = Callable[..., datasets.Dataset]


def opened(source: Source, tmp_path: Path, **changes: Any) -> tuple[ImageCache, ScanReport]:
    options = {"image_size": 32, "cache_scale": 1.15, "cache_budget": 2**30, "num_workers": 2, "progress": False}
    return load_image_cache(source, cache_dir=tmp_path / "stores", **{**options, **changes})


def fail(*args: Any, **options: Any) -> Any:
    raise AssertionError("an image was decoded")


def assert_same(one: ImageBatch, other: ImageBatch) -> None:
    for name in ("pixels", "sizes", "index", "epoch"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_gather_pads_and_marks_images(image_folder: MakeFolder, image: Any, tmp_path: Path) -> None:
    store, report = opened(load_source(str(image_folder(6))), tmp_path)
    batch = store.gather(np.array([4, 0]), 7)
    assert batch.pixels.shape == (2, 31, 24, 3) and batch.pixels.dtype == torch.uint8
    assert batch.sizes.tolist() == [[31, 17], [20, 24]]
    assert batch.index.tolist() == [4, 0] and batch.epoch.tolist() == [7, 7]
    assert np.array_equal(batch.pixels[0, :31, :17].numpy(), image(4, 31, 17))
    assert batch.pixels[0, :, 17:].sum() == 0 and batch.pixels[1, 20:].sum() == 0
    assert store.gather(np.array([2, 5]), np.array([1, 2])).epoch.tolist() == [1, 2]
    assert store.gather(np.array([2]), 0).sizes.tolist() == [[49, 37]]  # 64 x 48, reduced to 1.15 x 32
    assert report.heights == (20, 31, 64) and report.widths == (17, 24, 48) and report.images == len(store) == 6
    assert store.labels is None and store.class_names is None and store.source_name == "images"


@pytest.mark.parametrize("from_table", [False, True])
def test_cached_and_on_demand_give_the_same_batches(
    image_folder: MakeFolder, table: MakeTable, tmp_path: Path, from_table: bool
) -> None:
    if from_table:
        (tmp_path / "set").mkdir()
        table(50).to_parquet(tmp_path / "set" / "train.parquet")
    source = load_source(str(tmp_path / "set" if from_table else image_folder(50)))
    cached, _ = opened(source, tmp_path)
    on_demand, report = opened(source, tmp_path, cache_budget=0, num_workers=3)
    rebuilt, again = opened(source, tmp_path / "other", cache_budget=1000)
    assert (cached.is_cached, on_demand.is_cached, rebuilt.is_cached) == (True, False, False)
    assert not list((tmp_path / "other").rglob("pixels.bin"))
    assert report.images == again.images == 50
    indices = np.random.default_rng(0).permutation(50)[:20]
    for other in (on_demand, rebuilt):
        assert_same(cached.gather(indices, 3), other.gather(indices, 3))
    assert cached.fingerprint == on_demand.fingerprint == rebuilt.fingerprint


def test_second_opening_decodes_nothing(
    image_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_source(str(image_folder(30)))
    _, first = opened(source, tmp_path)
    _, small = opened(source, tmp_path / "small", cache_budget=0)
    monkeypatch.setattr(reading, "decode_reduced", fail)
    store, second = opened(source, tmp_path)
    assert second == first and len(store.gather(np.arange(30), 0)) == 30
    _, again = opened(source, tmp_path / "small", cache_budget=0)
    assert again == small
    with pytest.raises(AssertionError, match="was decoded"):
        opened(source, tmp_path, image_size=16)
    with pytest.raises(AssertionError, match="was decoded"):
        opened(source, tmp_path / "small")  # now the pixels fit the budget


def test_store_is_built_anew_once_pixels_fit_or_are_cut_short(image_folder: MakeFolder, tmp_path: Path) -> None:
    source = load_source(str(image_folder(5)))
    opened(source, tmp_path, cache_budget=0)
    assert opened(source, tmp_path)[0].is_cached
    (pixels,) = (tmp_path / "stores").rglob("pixels.bin")
    os.truncate(pixels, 100)
    assert opened(source, tmp_path)[0].is_cached and pixels.stat().st_size > 100


def test_result_does_not_depend_on_the_number_of_workers(image_folder: MakeFolder, tmp_path: Path) -> None:
    source = load_source(str(image_folder(300)))
    stores = [opened(source, tmp_path / str(workers), num_workers=workers)[0] for workers in (0, 1, 4)]
    files = [list((tmp_path / str(workers)).rglob("pixels.bin"))[0].read_bytes() for workers in (0, 1, 4)]
    assert files[0] == files[1] == files[2]
    assert_same(stores[0].gather(np.arange(300), 0), stores[2].gather(np.arange(300), 0))


def test_bad_images_are_left_out_with_a_reason(image_folder: MakeFolder, tmp_path: Path) -> None:
    folder = image_folder(60)
    (folder / "0007.png").write_bytes(b"")
    (folder / "deep").mkdir()
    (folder / "deep" / "x.jpg").write_bytes(b"text")
    (folder / "0050.png").unlink()
    (folder / "0050.png").symlink_to(tmp_path / "nothing")
    (folder / "0010.png").write_bytes((folder / "0009.png").read_bytes())
    store, report = opened(load_source(str(folder)), tmp_path)
    assert len(store) == report.images == 58 and report.duplicates == 1
    reasons = {entry["where"]: entry["reason"] for entry in report.bad}
    assert reasons["0007.png"] == "empty file" and reasons["0050.png"] == "No such file or directory"
    assert "format" in reasons[os.path.join("deep", "x.jpg")]
    assert str(tmp_path) not in json.dumps(reasons) + report.summary()
    assert store.gather(np.array([6, 7]), 0).sizes.tolist() == [[20, 24], [49, 37]]  # 6 and 8: 7 is missing


def test_many_bad_images_stop_the_run(image_folder: MakeFolder, tmp_path: Path) -> None:
    folder = image_folder(40)
    for number in (3, 5, 8):
        (folder / f"{number:04d}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3 of 40 .*more than the 5%.*0003.png: empty file; 0005.png"):
        opened(load_source(str(folder)), tmp_path)
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]


def test_labels_follow_the_images_that_remain(table: MakeTable, tmp_path: Path) -> None:
    images = table(100).map(
        lambda row, n: {"image": {"bytes": b"", "path": "/private/x.png"}} if n == 4 else row,
        with_indices=True,
        features=table(1).cast_column("image", datasets.Image(decode=False)).features,
    )
    images.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    store, report = opened(load_source(str(tmp_path / "set")), tmp_path)
    assert store.labels is not None and store.labels.tolist() == [n % 3 for n in range(100) if n != 4]
    assert report.bad == [{"where": "row 4 (x.png)", "reason": "empty file"}]
    assert report.labels == {"cat": 34, "dog": 32, "fox": 33} and store.class_names == ("cat", "dog", "fox")


def test_unlabeled_images_only_when_asked(table: MakeTable, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table(9, label_of=lambda n: [0, -1, None][n % 3]).to_parquet(tmp_path / "set" / "train.parquet")
    source = load_source(str(tmp_path / "set"))
    with pytest.raises(InputError, match="6 of 9 images of 'set' have no label"):
        opened(source, tmp_path)
    store, report = opened(source, tmp_path, allow_unlabeled=True)
    assert store.labels is not None and store.labels.tolist() == [0, -1, -1] * 3
    assert report.labels == {"cat": 3, "dog": 0, "fox": 0, "unlabeled": 6}


def test_illegal_label_is_found_before_decoding(
    table: MakeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    images = table(5).cast_column("label", datasets.Value("float32"))
    images.to_parquet(tmp_path / "set" / "train.parquet")
    monkeypatch.setattr(reading, "decode_reduced", fail)
    with pytest.raises(InputError, match="label of row 0 is 0.0"):
        opened(load_source(str(tmp_path / "set"), label_column="label"), tmp_path)


def test_limit_is_a_random_subset_that_never_changes(table: MakeTable, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table(120, label_of=lambda n: n // 40).to_parquet(tmp_path / "set" / "train.parquet")
    source = load_source(str(tmp_path / "set"))
    store, _ = opened(source, tmp_path, limit_images=30)
    values = store.gather(np.arange(30), 0).pixels[:, 0, 0, 0].tolist()
    assert values == sorted(set(values)) and store.labels is not None and set(store.labels) == {0, 1, 2}
    again, _ = opened(source, tmp_path / "again", limit_images=30)
    assert_same(store.gather(np.arange(30), 0), again.gather(np.arange(30), 0))
    everything, _ = opened(source, tmp_path)
    assert len(everything) == 120 and everything.fingerprint != store.fingerprint
    assert opened(source, tmp_path, limit_images=500)[0].fingerprint == everything.fingerprint
    with pytest.raises(InputError, match="`limit_images` is 0"):
        opened(source, tmp_path, limit_images=0)


def test_interrupted_build_leaves_nothing(
    image_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_source(str(image_folder(300)))

    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build._PixelFile, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            opened(source, tmp_path)
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tpssl")]
    (folder,) = {path.with_suffix("") for path in (tmp_path / "stores").iterdir()}
    left_behind = folder.with_name(f"{folder.name}.partial")  # as a killed process leaves it
    left_behind.mkdir()
    (left_behind / "meta.json").write_text("{")
    assert len(opened(source, tmp_path)[0]) == 300 and not left_behind.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_full_disk_is_explained(
    image_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class FullFile:
        def write(self, content: Any) -> None:
            raise OSError(code, os.strerror(code))

        def close(self) -> None:
            real.close()

    source = load_source(str(image_folder(3)))
    real = (tmp_path / "unused").open("wb")
    start = {"_file": FullFile(), "_budget": 2**30, "bytes": 0, "images": 0, "is_kept": True}
    monkeypatch.setattr(build._PixelFile, "__init__", lambda self, *args: self.__dict__.update(start))
    with pytest.raises(InputError, match=r"about 4,320 bytes are needed and [\d,]+ are free"):
        opened(source, tmp_path)
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]


def test_folder_that_cannot_be_written_is_explained(image_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "stores").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="set `cache_dir`"):
        opened(load_source(str(image_folder(3))), tmp_path)


def test_a_file_changed_since_is_decoded_anew_though_it_counts_as_the_same(
    image_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = image_folder(3)
    before, _ = opened(load_source(str(folder)), tmp_path)
    os.utime(folder / "0000.png", (1, 1))
    after, _ = opened(load_source(str(folder)), tmp_path)
    assert after.key != before.key and after.fingerprint == before.fingerprint


def test_changed_file_is_noticed_on_demand(image_folder: MakeFolder, tmp_path: Path, encode: Any) -> None:
    folder = image_folder(3)
    store, _ = opened(load_source(str(folder)), tmp_path, cache_budget=0)
    (folder / "0001.png").write_bytes(encode(np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(InputError, match="0001.png of 'images' has changed"):
        store.gather(np.arange(3), 0)


def test_streamed_and_empty_sources_have_no_store(tmp_path: Path, table: MakeTable) -> None:
    with pytest.raises(InputError, match="turn streaming off"):
        opened(load_source("digits", streaming=True), tmp_path)
    table(1).save_to_disk(tmp_path / "set")
    source = load_source(str(tmp_path / "set"))
    with pytest.raises(InputError, match="holds no images"):
        opened(replace(source, dataset=source.dataset.select([])), tmp_path)


def test_default_place_is_below_the_hub_cache(tmp_path: Path) -> None:
    source = load_source("digits", split="test")
    store, _ = load_image_cache(source, image_size=8, cache_budget=2**30, num_workers=1, progress=False)
    assert (tmp_path / "home" / "tpssl_hf" / "images" / store.key / "pixels.bin").exists()
    assert len(store) == 300 and store.labels is not None


def _open_and_report(folder: str, stores: Path, results: Any) -> None:
    def counted(*args: Any, **options: Any) -> Any:
        time.sleep(0.01)
        decoded.append(1)
        return real(*args, **options)

    decoded: list[int] = []
    real, reading.decode_reduced = reading.decode_reduced, counted
    store, _ = opened(load_source(folder), stores)
    results.put((len(decoded), store.gather(np.arange(len(store)), 0).pixels.numpy().tobytes()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # only this test forks, and only to be quick
def test_of_two_racing_processes_one_builds(image_folder: MakeFolder, tmp_path: Path) -> None:
    folder = image_folder(80)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open_and_report, args=(str(folder), tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    (first, pixels), (second, other_pixels) = (results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
        process.close()
    assert sorted((first, second)) == [0, 80] and pixels == other_pixels
    results.close()
    results.join_thread()


def test_large_mapped_tables_are_read_in_bounded_memory(
    table: MakeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(60).save_to_disk(tmp_path / "set")
    source = load_source(str(tmp_path / "set"))
    expected = build.EncodedImages(source).read(list(range(60)))
    monkeypatch.setattr(build, "REMAP_BYTES", -1)
    encoded = build.EncodedImages(source)
    mappings = set()
    for row in range(60):
        assert encoded.read([row]) == [expected[row]]
        mappings.add(id(encoded._dataset))
    assert len(mappings) > 1 or not build.MEMORY_STATUS.exists()
