"""Configuration of the analyses of finished weights and runs."""

from dataclasses import dataclass

from tpssl_hf.config.allowed import ABOVE_0, FROM_1, SEEDS
from tpssl_hf.config.parser import key
from tpssl_hf.config.shared import DataConfig


@dataclass(frozen=True)
class AnalyzeConfig:
    """What is analyzed."""

    analysis: str = key(
        "clustering,tsne,drift",
        "One or several of clustering, tsne, drift, steps, transfer, convergence.",
        several=True,
    )
    base: str = key("random", "Φ_pre: whatever --init takes, or a run's folder.")
    adapted: str = key(
        "", "Φ_T, one or several: run folders or whatever --init takes, with commas between.", several=True
    )
    backbone: str = key("resnet18", "timm model of weights that do not say of which model they are.")
    run: str | None = key(
        None,
        "steps: the target pretraining whose checkpoints are scored; it keeps 2 unless run with --keep_checkpoints N.",
    )
    runs: str | None = key(
        None,
        "transfer, convergence, steps: folders of finished classify runs, with commas between; * is allowed.",
        several=True,
    )
    test_split: str = key("test", "Split for clustering and t-SNE beside the training one; `none` for none.")
    normalize: bool = key(False, "clustering: features of length one; the paper's are raw.")
    repeats: int = key(5, "clustering: starts of k-means; steps: label seeds.")
    labels: str = key("40,250", "steps: labels of the linear probe, with commas between.", several=True)
    samples: int = key(500, "tsne: images drawn at random, fewer where there are fewer (paper: 500).")
    perplexity: float = key(30.0, "tsne: perplexity.", within=ABOVE_0)
    output_dir: str = key("outputs/analyze", "Folder of the tables and images.", carry_out=True)
    seed: int = key(0, "Seed of random weights, draws, k-means and t-SNE.", within=SEEDS)
    cpu_threads: int | None = key(
        None, "CPU threads of this process; chosen for the machine when not given.", within=FROM_1
    )


@dataclass(frozen=True)
class AnalyzeArgs:
    """Arguments of the analyses."""

    task: AnalyzeConfig
    data: DataConfig
