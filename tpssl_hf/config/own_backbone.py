"""The architecture of weights that say it themselves."""

from collections.abc import Sequence

from tpssl_hf.config.parser import config_files
from tpssl_hf.models.backbone import stored_config
from tpssl_hf.process import values_of


def with_own_backbone(line: Sequence[str]) -> list[str]:
    """Add the architecture that the folder given as ``--init`` states, where nothing else names a backbone.

    Args:
        line: a command line as the user gave it.
    """
    init = values_of("--init", line)
    if not init or values_of("--backbone", line) or config_files(line):
        return list(line)
    architecture = stored_config(init[-1]).get("architecture")
    return [*line, "--backbone", str(architecture)] if architecture else list(line)


def gives_pretrained(line: Sequence[str]) -> bool:
    """Whether a command line gives ``--init``, and something else than random weights."""
    return any(init != "random" for init in values_of("--init", line))
