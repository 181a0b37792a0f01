"""Pre-annotated tasks of Label Studio, with the configuration of a project that takes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from tpssl_hf.tasks.predict.exports.predicted import Predicted, write_json_list

LOCAL_FILES = "/data/local-files/?d="  # below Label Studio's document root


def write(predicted: Predicted, folder: Path) -> None:
    """Write ``tasks.json`` to import, and ``label_config.xml`` for the project's settings."""
    with (folder / "tasks.json").open("w", encoding="utf-8") as text:
        write_json_list(text, _tasks(predicted))
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in predicted.class_names)
    config = (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="label" toName="image" choice="single">\n{choices}\n  </Choices>\n</View>\n'
    )
    (folder / "label_config.xml").write_text(config, encoding="utf-8")


def _tasks(predicted: Predicted) -> Iterator[dict[str, Any]]:
    for row in predicted.rows():
        choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [row["label"]]}}
        prediction = {"model_version": predicted.model_name, "score": row["confidence"], "result": [choice]}
        data = {"image": LOCAL_FILES + quote(row["file"]), "file": row["file"], "row": row["row"]}
        yield {"data": data, "predictions": [prediction]}
