"""The output folder: parts that survive a kill, and what they are joined into at the end."""

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tpssl_hf.data.image_cache_writer import DISK_FULL
from tpssl_hf.errors import InputError
from tpssl_hf.files.atomic import replacing_file
from tpssl_hf.tasks.predict.answers import Answers
from tpssl_hf.tasks.predict.config import CARRY_OUT
from tpssl_hf.tasks.predict.exports.write import EXPORTS
from tpssl_hf.tasks.predict.segment import MASKS, OVERLAYS
from tpssl_hf.training.run_dir import CONFIG, RESULTS, RunDir

PARTS, SKIPPED = "parts", "skipped.csv"
FACTS = b"tpssl_hf"  # key of a part's own facts
MODEL_KEY, IMAGES_KEY = "model_fingerprint", "images_fingerprint"
IDENTITY = pa.schema([("row", pa.int64()), ("file", pa.string())])


def default_folder(record: Mapping[str, Any]) -> str:
    """Return the folder of results where none is given: another one for other images, weights or keys.

    Args:
        record: every key, and the fingerprints of images and model.
    """
    content = {name: value for name, value in record.items() if name not in CARRY_OUT}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    parent = "outputs/embeddings" if record["task"] == "embed" else "outputs/predictions"
    return f"{parent}/{short_name(record['model'])}-{short_name(record['dataset'])}-{digest[:8]}"


def short_name(location: str) -> str:
    """Return the part of a path or Hub id that people know it by, fit for a file name."""
    parts = [part for part in re.split(r"[/\\]", location.partition("@")[0]) if part not in ("", ".", "..", "model")]
    return re.sub(r"[^\w.-]", "_", parts[-1])[:40] if parts else "here"


def refuse_overlap(folder: Path, images: Path | None) -> None:
    """Refuse an output folder inside the folder of images, where results would be taken for images.

    Raises:
        InputError: if results would become part of the input, or overwrite it.
    """
    if images is None:
        return
    folder = folder.expanduser().resolve()
    own = [folder / name for name in (PARTS, MASKS, OVERLAYS, EXPORTS)]
    if folder.is_relative_to(images) or any(images.is_relative_to(part) for part in own):
        raise InputError(
            f"output_dir {str(folder)!r} and the images in {str(images)!r} overlap, so results would become part of "
            "the images; choose an output_dir outside of that folder."
        )


@contextmanager
def open_output(folder: Path, record: Mapping[str, Any]) -> Iterator[RunDir]:
    """Take the output folder for one run.

    Args:
        folder: made if it is missing.
        record: every key, and the fingerprints of images and model.

    Raises:
        InputError: if the folder cannot be written, is full or in use, or holds results of other keys, images or
            weights.
    """
    begun = any((folder / PARTS).glob("part_*.parquet")) or (folder / RESULTS).exists()
    if begun and (folder / CONFIG).is_file():
        _refuse_other(folder, record)
    with RunDir(folder, record, ignore=CARRY_OUT) as run:
        try:
            yield run
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise InputError(
                f"No room for more results in {folder} ({error.strerror}); free some and start again, it continues."
            ) from error


def _refuse_other(folder: Path, record: Mapping[str, Any]) -> None:
    try:
        former = dict(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIG} cannot be read; choose another output_dir, or delete the folder."
        ) from error
    way_out = "choose another output_dir, or delete the folder."
    if IMAGES_KEY not in former or former.get("task") != record["task"]:
        raise InputError(f"{folder} holds results of something else; {way_out}")
    changed = [key for key in record if former.get(key) != record[key] and key not in CARRY_OUT]
    shown = [f"{key} {former.get(key)} -> {record[key]}" for key in changed if key not in (MODEL_KEY, IMAGES_KEY)]
    if shown:
        raise InputError(f"{folder} was begun with other settings: {'; '.join(shown)}; {way_out}")
    if IMAGES_KEY in changed:
        raise InputError(
            f"{folder} was begun with other images: those of {former['dataset']!r} then and of "
            f"{record['dataset']!r} now differ; {way_out}"
        )
    if MODEL_KEY in changed:
        raise InputError(
            f"{folder} was begun with another model: {former['model']!r} then and {record['model']!r} now differ; "
            f"{way_out}"
        )


class Parts:
    """Results of consecutive images, one file for every ``size`` of them."""

    def __init__(self, folder: Path, total: int, size: int, answers: Answers) -> None:
        self.folder = folder / PARTS
        self.folder.mkdir(exist_ok=True)
        self._out = folder
        self._answers = answers
        self._schema = pa.unify_schemas([IDENTITY, answers.schema])
        self.sizes = [min(size, total - start) for start in range(0, total, size)]
        self.missing = [number for number in range(len(self.sizes)) if not self._is_whole(number)]

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part_{number:05d}.parquet"

    def _is_whole(self, number: int) -> bool:
        try:
            facts = self._facts(number)
        except (OSError, pa.ArrowInvalid, KeyError, ValueError):
            return False
        same_columns = (
            pq.read_schema(self.path(number)).names == self._schema.names
        )  # labeled images may have gone since
        return same_columns and bool(facts["images"] == self.sizes[number])

    def _facts(self, number: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(pq.read_metadata(self.path(number)).metadata[FACTS])
        return facts

    def write(self, number: int, batches: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]]) -> None:
        """Write a part in one piece.

        Args:
            number: of the part.
            batches: columns of the images in it.
            skipped: ``row``, ``file`` and ``reason`` of those that could not be read.
        """
        facts = {"images": self.sizes[number], "skipped": list(skipped)}
        schema = self._schema.with_metadata({FACTS: json.dumps(facts, ensure_ascii=False)})
        parts = [pa.Table.from_pydict(dict(batch), schema=schema) for batch in batches]
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        with replacing_file(self.path(number)) as temporary:
            pq.write_table(table, temporary)

    def join(self) -> tuple[int, int]:
        """Join all parts into the result's files; returns how many images have an answer, and how many do not."""
        answered, path = 0, self._out / f"{self._answers.name}.parquet"
        with replacing_file(path) as temporary, pq.ParquetWriter(temporary, self._schema) as writer:
            for table in self._tables():
                if len(table):  # readers take the length of the first group for that of their batches
                    writer.write_table(table)
                answered += len(table)
        if self._answers.csv_columns:
            self._write_csv()
        return answered, self._write_skipped()

    def _tables(self) -> Iterator[pa.Table]:
        for number in range(len(self.sizes)):
            yield pq.read_table(self.path(number)).replace_schema_metadata(None)

    def _write_csv(self) -> None:
        columns = [*IDENTITY.names, *self._answers.csv_columns]
        path = self._out / f"{self._answers.name}.csv"
        with replacing_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(columns)
            for table in self._tables():
                for row in table.to_pylist():
                    flat = [row["row"], row["file"], *self._answers.csv_values(row)]
                    writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in flat])

    def _write_skipped(self) -> int:
        count = 0
        with replacing_file(self._out / SKIPPED) as path, path.open("w", encoding="utf-8", newline="") as text:
            writer = csv.DictWriter(text, ["row", "file", "reason"])
            writer.writeheader()
            for number in range(len(self.sizes)):
                skipped = self._facts(number)["skipped"]
                writer.writerows(skipped)
                count += len(skipped)
        return count

    def remove(self) -> None:
        """Remove the parts, once what they were joined into is on the disk."""
        shutil.rmtree(self.folder)
