"""Configuration of publishing: what is pushed where, and what a card needs that a run cannot know."""

from dataclasses import dataclass

from tpssl_hf.config.parser import key


@dataclass(frozen=True)
class PublishRunConfig:
    """What goes where."""

    run: str = key("", "Folder of a finished run; may also be given first, without `--run`.")
    space: str = key("", "Instead of a run: folder of the demo, spaces/demo or a copy, published as a Space.")
    demo_config: str = key("", "With space: the demo.yaml to publish; that of the folder when not given.")
    metric: str = key("", "Instead of a run: folder of a metric's module, published for `evaluate.load`.")
    repo: str = key("", "Repository on the Hub, `owner/name`; the owner is you or an organization you may write to.")


@dataclass(frozen=True)
class PublishConfig:
    """Publishing."""

    private: bool = key(False, "Make the repository visible to you, or the organization's members, only.")
    revision: str | None = key(None, "Branch to push to, made if it is missing; `main` when not given.")
    create_pr: bool = key(False, "Open a pull request instead of changing the repository.")
    collection: str | None = key(None, "Slug of a collection of yours the repository is added to.")
    dry_run: str | None = key(None, "Write what would be pushed to this folder, and push nothing.")
    license: str | None = key(
        None, "License of the weights as the Hub spells it (apache-2.0); that of the base weights when not given."
    )
    base_model: str | None = key(
        None, "Published weights this run started from, a Hub id, or `none` for random ones; found when not given."
    )
    base_note: str | None = key(
        None, "What the weights this run started from are, in a few words, where they are published nowhere."
    )
    dataset_id: str | None = key(None, "Hub id of the data set, where it has one that the run does not name.")
    dataset_license: str | None = key(None, "Terms of the images, in a few words.")
    verdict: str | None = key(
        None, "A verdict's folder, or `none`; a verdict inside the run's folder is found when not given."
    )
    message: str | None = key(None, "Subject of the commit.")
    timeout: float = key(60.0, "Seconds without an answer of the Hub after which a request is tried again.")
    onnx: bool = key(False, "Add the network as ONNX, for onnxruntime and browsers; needs the extra `onnx`.")


@dataclass(frozen=True)
class PublishArgs:
    """Every key of publish."""

    target: PublishRunConfig
    publish: PublishConfig


ONLY_OF_RUNS = ("license", "base_model", "base_note", "dataset_id", "dataset_license", "verdict", "onnx")
