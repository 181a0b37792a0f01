"""What the public functions take and give back beside plain keys: finished runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from tpssl_hf.config.shared import RunConfig
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import WEIGHTS_FILE, stored_config
from tpssl_hf.models.sealed import check_seals, read_sealed_weights
from tpssl_hf.training.run_dir import RESULTS


@dataclass(frozen=True)
class FinishedRun:
    """A finished run in a folder.

    Attributes:
        path: the folder, ``output_dir``.
    """

    path: Path

    @property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``: ``metrics``, ``verdict``, ``config``, versions and more."""
        content: dict[str, Any] = json.loads((self.path / RESULTS).read_text(encoding="utf-8"))
        return content

    @property
    def model_path(self) -> Path:
        """The folder of the weights, which timm and transformers load."""
        return self.path / "model"

    def load(self) -> nn.Module:
        """Return the network: a timm backbone or classifier, or a segmenter of transformers; in evaluation mode."""
        if not self.model_path.is_dir():
            raise InputError(f"{self.path} holds no model/; of several label seeds, load one: label_seed_N/model.")
        read_sealed_weights(self.model_path / WEIGHTS_FILE)
        check_seals(self.model_path)
        if "architecture" in stored_config(str(self.model_path)):
            network: nn.Module = timm.create_model(f"local-dir:{self.model_path}", pretrained=True)
        else:
            from tpssl_hf.models.segmenter import TpsslForSemanticSegmentation  # loads transformers

            network = TpsslForSemanticSegmentation.from_pretrained(self.model_path)
        return network.eval()

    def push_to_hub(self, repo: str, **keys: Any) -> None:
        """Publish the run with a model card, as ``tpssl-hf publish`` does.

        Args:
            repo: Hub id, ``owner/name``.
            keys: the other keys that ``tpssl-hf publish --help`` lists.

        Raises:
            InputError: if the run or the card lacks something, or the Hub refuses.
        """
        from tpssl_hf.commands.publish import publish

        publish(self.path, repo, **keys)

    def __str__(self) -> str:
        """The folder."""
        return str(self.path)


def keywords(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat keys for finished runs among them: as ``init``, a run means its weights."""
    own = dict(keys)
    if isinstance(own.get("init"), FinishedRun):
        own["init"] = own["init"].model_path
    return own


def finish(code: int, run: RunConfig) -> FinishedRun:
    """Return the finished run of a command that ended with exit code ``code``.

    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    if code:
        raise KeyboardInterrupt(f"stopped; the same call continues the run in {run.output_dir}")
    return FinishedRun(Path(run.output_dir))
