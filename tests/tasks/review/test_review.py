"""The page of a review: what is in its data, and that nothing in it can become markup or script."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from finished_predictions import CLASSES, HOSTILE
from PIL import Image

from tpssl_hf.commands.review import main
from tpssl_hf.data.sources import load_source
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.review import thumbnails
from tpssl_hf.tasks.review.config import ReviewConfig
from tpssl_hf.tasks.review.given import find_suspects
from tpssl_hf.tasks.review.page import as_script
from tpssl_hf.tasks.review.run import ReviewResult, review
from tpssl_hf.tasks.review.table import key_column


def run(folder: Path, said: list[str] | None = None, **keys: Any) -> ReviewResult:
    return review(ReviewConfig(str(folder), **keys), say=[].append if said is None else said.append, progress=False)


def data_of(folder: Path) -> dict[str, Any]:
    script = (folder / "review" / "data.js").read_text(encoding="ascii")
    found: dict[str, Any] = json.loads(script.removeprefix("window.REVIEW = ").removesuffix(";\n"))
    return found


def test_the_page_has_the_predictions_and_a_small_jpeg_of_each(predictions: Path) -> None:
    assert run(predictions) == ReviewResult(predictions / "review" / "index.html", 6, 1, 0, 0)
    found = data_of(predictions)
    own = found["predictions"]
    assert sorted(own["files"]) == sorted(HOSTILE) and own["column"] == "file" and found["classes"] == CLASSES
    assert [found["classes"][number] for number in own["labels"]] == CLASSES * 2
    assert own["confidences"][:2] == [0.99, 0.89] and own["images"] == "../../photos/"
    for number in range(6):
        with Image.open(predictions / "review" / own["thumbnails"] / "00000" / f"{number:03d}.jpg") as image:
            assert image.format == "JPEG" and image.size == (85, 128)


def test_a_label_that_was_answered_otherwise_is_suspect(predictions: Path) -> None:
    run(predictions)
    given = data_of(predictions)["given"]
    assert (given["rows"], given["labels"], given["others"]) == ([2], [2], [1])
    assert (given["confidences"], given["other_confidences"]) == ([0.03], [0.9])
    assert (given["asked"], given["found"], given["same_images"]) == (3, 1, True)
    assert given["all"]["rows"] == [0, 1, 2, 3] and given["all"]["labels"] == [0, 1, 2, 0]


def test_the_least_probable_label_comes_first() -> None:
    answers = np.log([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    found = find_suspects({7: 1, 8: 1, 9: 1}, np.array([7, 8, 9]), answers)
    assert found.rows.tolist() == [8, 7] and found.confidences == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize("change", ["no folds", "other images", "folds of other labels", "no run"])
def test_where_given_labels_are_not_known_a_sentence_says_why(change: str, predictions: Path, tmp_path: Path) -> None:
    finetuning = tmp_path / "classifier"
    if change == "no folds":
        (finetuning / "checkpoints" / "folds.json").unlink()
    elif change == "folds of other labels":
        (finetuning / "checkpoints" / "folds.json").write_text('[{"rows": [5], "log_probabilities": [[0, 0, 0]]}]')
    elif change == "no run":
        shutil.rmtree(finetuning)
    else:
        content = json.loads((finetuning / "labels.json").read_text())
        (finetuning / "labels.json").write_text(json.dumps(content | {"fingerprint": "other"}))
    assert run(predictions, said := []).suspects is None
    found = data_of(predictions)
    assert found["given"] is None and found["given_unknown"].startswith(
        "Which of the given labels may be wrong is not"
    )
    assert said[0].startswith("which of the given labels may be wrong is not known: ") and len(said) == 2


def test_thumbnails_are_made_once_and_a_killed_run_continues(
    predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "PART", 2)
    whole, calls = thumbnails._write, list[Path]()

    def dies(value: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        whole(value, path)

    monkeypatch.setattr(thumbnails, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(predictions, num_workers=1)
    [folder] = (predictions / "review").glob("thumbnails-*")
    assert [path.name for path in folder.iterdir()] == ["00000"]
    before = len(calls)
    run(predictions)
    assert len(calls) - before == 4 + 1, "two parts, and the given label"
    run(predictions)
    assert len(calls) - before == 5 and len(list(folder.rglob("*.jpg"))) == 6


def test_an_image_that_cannot_be_read_has_no_thumbnail(photos: Path, tmp_path: Path) -> None:
    (photos / "plain.png").write_bytes(b"broken")
    source = load_source(str(photos))
    thumbnails.make_thumbnails(source, range(6), tmp_path / "made", num_workers=1, title="", progress=False)
    assert len(list((tmp_path / "made" / "00000").iterdir())) == 5


def test_names_cannot_end_the_script() -> None:
    text = as_script({"name": "</script><!-- \u2028 é"})
    assert not re.search(r"[<>\u2028é]", text) and json.loads(text[16:-2]) == {"name": "</script><!-- \u2028 é"}


def test_the_page_asks_nobody_and_holds_no_name(predictions: Path) -> None:
    page = run(predictions).page.read_text(encoding="utf-8")
    assert "{{" not in page and "innerHTML" not in page and "alert" not in page and "photos" not in page
    assert not re.search(r"https?:|//[a-z]+\.", page.replace("// ", ""))
    assert "default-src 'none'" in page and page.count("</script>") == 2


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (["a.png", "b.png"], "file"),
        (["0", "1"], "row"),
        (["a.png", "A.png"], "row"),
        (["a\n.png", "b"], "row"),
        ([" a", "b"], "row"),
    ],
)
def test_images_are_named_by_row_where_their_names_will_not_do(names: list[str], column: str) -> None:
    assert key_column(names) == column


def test_images_of_a_table_are_rows_and_have_no_link(predictions: Path, photos: Path, tmp_path: Path) -> None:
    files = [{"bytes": (photos / name).read_bytes(), "path": None} for name in HOSTILE]
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": files}), tmp_path / "table" / "train.parquet")
    found = yaml.safe_load((predictions / "config.yaml").read_text()) | {"dataset": str(tmp_path / "table")}
    found["images_fingerprint"] = load_source(found["dataset"]).fingerprint
    (predictions / "config.yaml").write_text(yaml.safe_dump(found))
    run(predictions)
    own, given = data_of(predictions)["predictions"], data_of(predictions)["given"]
    assert (own["column"], own["images"]) == ("row", None) and (given["column"], given["same_images"]) == (
        "file",
        False,
    )


def test_images_that_have_moved_are_named(predictions: Path, photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be opened.*--dataset"):
        run(predictions)
    (tmp_path / "other").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "x.png")
    with pytest.raises(InputError, match="are not those that were predicted"):
        run(predictions, dataset=str(tmp_path / "other"))
    run(predictions, dataset=str(tmp_path / "elsewhere"))
    assert data_of(predictions)["predictions"]["images"] == "../../elsewhere/"


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("results.json", "holds no finished predictions"), ("predictions.parquet", "holds no finished predictions")],
)
def test_an_unfinished_folder_is_refused(missing: str, sentence: str, predictions: Path) -> None:
    (predictions / missing).unlink()
    with pytest.raises(InputError, match=sentence):
        run(predictions)


def test_what_was_written_by_something_else_is_refused(predictions: Path) -> None:
    (predictions / "config.yaml").write_text(yaml.safe_dump({"model": "m"}))
    with pytest.raises(InputError, match="lack dataset, images_fingerprint, model_fingerprint, split"):
        run(predictions)


def test_a_folder_that_cannot_be_written_is_named(predictions: Path) -> None:
    (predictions / "review").write_text("in the way")
    with pytest.raises(InputError, match="review cannot be written"):
        run(predictions)


def test_the_command_says_where_the_page_is(predictions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(predictions), "--num_workers", "1"]) == 0
    said = capsys.readouterr().out
    assert f"6 predictions, 1 given labels that may be wrong: {predictions / 'review' / 'index.html'}" in said
    with pytest.raises(InputError, match="'b' is one word too many"):
        main(["a", "b"])
