"""What the tests of published Spaces run, and what they publish."""

import ast
import re
import sys
from pathlib import Path
from typing import Any

# Runs in a process of its own, in the folder of a dry run and without the repository.
RUN = """
import json, sys
from pathlib import Path
sys.path.insert(0, str(Path.cwd() / "out"))
import tpssl_hf
assert Path(tpssl_hf.__file__).parent == Path.cwd() / "out/tpssl_hf", tpssl_hf.__file__
found = {"scores": []}
if sys.argv[1] == "with gradio":
    import app
    from demo_config import read_demo_config
    ours = [module.__file__ for name, module in sys.modules.items() if name.startswith("tpssl_hf")]
    parts = app.build_demo(read_demo_config(app.CONFIG)).get_config_file()["components"]
    texts = [part["props"].get("value") for part in parts if part["type"] == "markdown"]
    found["demo"] = {"ours": ours, "texts": texts, "images": sum(part["type"] == "image" for part in parts)}
for block in Path("snippets.txt").read_text().split("#####"):
    scope = {}
    exec(compile(block, "snippet", "exec"), scope)
    found["scores"].append(scope["scores"])
Path("found.json").write_text(json.dumps(found))
"""


OWN = """
import datasets
import evaluate
from .helping import right

class Own(evaluate.Metric):
    def _info(self):
        value = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="", citation="", features=datasets.Features(predictions=value, references=value)
        )

    def _compute(self, *, predictions, references):
        return {"right": right(predictions, references)}
"""


CARD = """---
title: Own
sdk: static
tags: [evaluate, metric]
---
```python
import evaluate
metric = evaluate.load("owner/own_metric")
scores = metric.compute(predictions=[1, 2], references=[1, 3])
```
"""


def write_metric(folder: Path) -> Path:
    """Write a metric that imports from its folder."""
    folder.mkdir()
    (folder / f"{folder.name}.py").write_text(OWN)
    (folder / "helping.py").write_text("def right(a, b):\n    return sum(x == y for x, y in zip(a, b))\n")
    (folder / "README.md").write_text(CARD)
    return folder


def check_demo(demo: dict[str, Any], folder: Path) -> None:
    """Everything but the models is there, and requirements.txt names all that our modules import."""
    for name in ("me/base", "me/segmenter"):
        assert any(f"{name} is no folder here and the Hub did not deliver it" in text for text in demo["texts"])
    assert "Adapted weights are better, as log.txt says with <hidden>." in demo["texts"]
    assert demo["images"] == 3 and not any("not there yet" in text for text in demo["texts"])
    lines = (folder / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[>=<]", line)[0] for line in lines if not line.startswith("#")}
    trees = [ast.parse(Path(module).read_text()) for module in demo["ours"]]
    imports = [node for tree in trees for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"tpssl_hf"}
    distributions = {"PIL": "pillow", "yaml": "pyyaml"}
    assert tops >= {"torch", "timm"} and {distributions.get(top, top.replace("_", "-")) for top in tops} <= required
