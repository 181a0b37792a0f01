"""A web demo of classification, segmentation and of what target pretraining has changed; also a Hugging Face Space.

    tpssl-hf demo --build                   # first makes the small models of demo.yaml: some minutes, once
    tpssl-hf demo                           # with models that are there
    tpssl-hf demo --config my_demo.yaml --port 7861
    python spaces/demo/app.py               # the same without installing

Visitors choose from what the YAML file names, and nothing else is loaded for them.
"""

import contextlib
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch likewise; spinning threads would starve the server
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  # of a Space with a shared GPU; wants to be there before torch

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from demo_build import FOLDER, build
from demo_changes import changes_tab
from demo_config import DemoConfig, parse_demo
from demo_looks import CSS, theme
from demo_tabs import classification_tab, segmentation_tab
from uploads import MAX_BYTES

from tpssl_hf.process import run_cli

CONFIG = Path(__file__).with_name("demo.yaml")
SESSIONS = 100  # visitors remembered; gradio's 10,000 would cost most of a gigabyte, and every call may be a new one
WAITING = 20  # visitors in the queue, beyond which the next one is asked to come back


class Demo(gr.Blocks):  # type: ignore[misc]  # gradio is optional, so it is not looked into
    """Blocks that take uploads only: gradio would fetch any address that is sent in place of a file, of any size."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Refuse an input that names an address, before anything is done with it."""
        super().validate_inputs(block_fn, inputs)
        if _names_address(inputs):
            raise gr.Error("Upload the image itself; addresses are not fetched here.", print_exception=False)


def _names_address(value: Any) -> bool:
    if isinstance(value, dict):
        return "://" in str(value.get("path", "")) or any(_names_address(part) for part in value.values())
    return isinstance(value, list) and any(_names_address(part) for part in value)


def build_demo(config: DemoConfig) -> Demo:
    """Load the models that ``config`` names and lay out the page; nothing is started.

    What cannot be loaded is replaced by a sentence on its tab.
    """
    with Demo(title=config.title, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(f"# {config.title}\n\n{config.sentence}", elem_id="heading")
        with gr.Tab("Classification", id="classification"):
            classification_tab(config)
        with gr.Tab("Segmentation", id="segmentation"):
            segmentation_tab(config)
        with gr.Tab("What changed", id="changes"):
            changes_tab(config)
    # `api_open` would let requests pass by the queue, as many at a time as anybody likes.
    demo.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    assert isinstance(demo, Demo)  # what the context of Blocks gives has no type
    return demo


def launch_options(*, host: str | None = None, port: int | None = None) -> dict[str, Any]:
    """Return all arguments of ``launch``: uploads of 8 MB, no files of this machine, no tunnel, no error texts.

    Args:
        host: address to listen on; this machine only, or what GRADIO_SERVER_NAME says, if None.
        port: to listen on; the first free one from 7860 if None.
    """
    return {
        "theme": theme(),
        "css": CSS,
        "max_file_size": MAX_BYTES,
        "allowed_paths": [],
        "show_error": False,  # sentences for visitors arrive all the same; tracebacks are nobody's business
        "share": False,
        "enable_monitoring": False,
        "state_session_capacity": SESSIONS,
        "mcp_server": False,
        "ssr_mode": False,
        "_frontend": False,  # or gradio gives up where its own first answer takes 3 s, as on a busy machine
        "footer_links": ["api", "settings"],
        "server_name": host,
        "server_port": port,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, build the models if asked to, serve until stopped; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    config, server = parse_demo(given, CONFIG, __doc__ or "")
    if server.build:
        build(FOLDER, server.steps)
    build_demo(config).launch(**launch_options(host=server.host, port=server.port))
    return 0


if __name__ == "__main__":
    run_cli(main)
