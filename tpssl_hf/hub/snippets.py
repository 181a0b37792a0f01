"""How to load a published model, by task; every snippet runs as it stands beside an image called image.png."""

from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it brings torch with it, which a card does not need
    from tpssl_hf.hub.onnx import Exported

_BACKBONE = """Plain timm:

```python
import timm

backbone = timm.create_model("hf-hub:$repo", pretrained=True, num_classes=0).eval()  # images to features
maps = timm.create_model("hf-hub:$repo", pretrained=True, features_only=True).eval()  # images to feature maps
```

transformers:

```python
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("$repo")
model = AutoModel.from_pretrained("$repo").eval()
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
pixels = processor(image, return_tensors="pt")["pixel_values"]
features = model(pixels).pooler_output
```

tpssl_hf, to go on with few labels of your own (`accelerate launch recipes/ssl_classify.py --backbone $backbone
--init $repo --dataset FOLDER`):

```python
from tpssl_hf.models.backbone import load_backbone

backbone, origin = load_backbone("$backbone", init="$repo")
```
"""

_CLASSIFIER = """transformers:

```python
from transformers import pipeline

classify = pipeline("image-classification", model="$repo")
print(classify("image.png"))
```

Plain timm:

```python
import timm
from PIL import Image, ImageOps

model = timm.create_model("hf-hub:$repo", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
logits = model(transform(image)[None])
```

tpssl_hf, its backbone without the classifier:

```python
from tpssl_hf.models.backbone import load_backbone

backbone, origin = load_backbone("$backbone", init="$repo")
```
"""

_SEGMENTER = """transformers; importing tpssl_hf makes the architecture known to it (timm holds no segmenters):

```python
import tpssl_hf
from transformers import pipeline

segment = pipeline("image-segmentation", model="$repo")
print(segment("image.png"))
```

The network itself:

```python
import tpssl_hf
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained("$repo")
model = AutoModelForSemanticSegmentation.from_pretrained("$repo").eval()
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
pixels = processor(image, return_tensors="pt")["pixel_values"]
logits = model(pixels).logits
```
"""

_ONNX = """onnxruntime; `onnx/model.onnx` (opset $opset, float32) takes `pixel_values` $shape and gives $given$scored:

```python
import onnxruntime
from huggingface_hub import hf_hub_download
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained("$repo")
network = onnxruntime.InferenceSession(hf_hub_download("$repo", "onnx/model.onnx"))
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")$resized
pixels = processor(image$unshrunk, return_tensors="pt")["pixel_values"].numpy()
[$outputs] = network.run(None, {"pixel_values": pixels})
```

transformers.js; its pipelines do not know this architecture, its plain model does. In Node it scales images down
without smoothing them, so numbers differ from those of Python where it has to:

```js
import { AutoImageProcessor, AutoModel, load_image } from "@huggingface/transformers";

const processor = await AutoImageProcessor.from_pretrained("$repo");
const model = await AutoModel.from_pretrained("$repo", { dtype: "fp32" });
const image = await load_image("image.png")$resized_in_browsers;
const { $outputs } = await model(await processor(image));
```
"""

_READ_AS_TRAINED = """Images read as in training, where other readers differ (more than 8 bits, transparency):

```python
from PIL import Image
from tpssl_hf.data.scan import decode_image

image = Image.fromarray(decode_image("image.png"$range))  # 8-bit RGB: hand it over instead of the path
```
"""

_BY_RECIPE = {"target_pretrain": _BACKBONE, "ssl_classify": _CLASSIFIER, "ssl_segment": _SEGMENTER}


def snippets(results: dict[str, Any], repo: str) -> str:
    """Return the section of a card that says how to load the model.

    Args:
        results: results.json of the run.
        repo: Hub id of the model.
    """
    name = results["backbone"].partition(".")[0]
    text = Template(_BY_RECIPE[results["recipe"]]).substitute(repo=repo, backbone=name).strip()
    found = results.get("published_path")
    if found is not None and any(path["agree_if_read_as_trained"] for path in found["paths"]):
        limits = found.get("wide_range")
        own = "" if limits is None else f", wide_range=({limits[0]:g}, {limits[1]:g})"
        text += "\n\n" + Template(_READ_AS_TRAINED).substitute(range=own).strip()
    return text


def onnx_snippets(results: dict[str, Any], repo: str, exported: "Exported") -> str:
    """Return what a card says of the ONNX file, to go after the other snippets.

    Args:
        results: results.json of the run.
        repo: Hub id of the model.
        exported: the network as ONNX.
    """
    (height, width), resized, resized_in_browsers, scored, unshrunk = exported.size, "", "", "", ""
    if results["recipe"] == "ssl_segment":  # the processor of the others does it
        if results["config"].get("test_mode") != "resize":
            scored = "; the scores above were not taken on images resized to this"
        unshrunk = ", shorter_side=0"
        resized, resized_in_browsers = f".resize(({width}, {height}))", f".then((it) => it.resize({width}, {height}))"
    text = Template(_ONNX).substitute(
        repo=repo,
        opset=exported.opset,
        shape=f"(batch, 3, {height}, {width})",
        given=" and ".join(f"`{name}`" for name in exported.outputs),
        outputs=", ".join(exported.outputs),
        resized=resized,
        resized_in_browsers=resized_in_browsers,
        scored=scored,
        unshrunk=unshrunk,
    )
    return text.strip()
