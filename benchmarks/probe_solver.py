"""Probes of many draws of few labels: all at once by our solver, against scikit-learn's one after the other.

    python benchmarks/probe_solver.py --draws 20

Both answer in turn, with the threads that a run has. ``--features`` names a file of NumPy's ``savez`` with features
``x`` (N, D) and labels ``y`` (N,), of which the second half is asked about; without it they are drawn.
"""

import argparse
import statistics
import warnings

from tpssl_hf.process import prepare_process, run_cli

prepare_process([])

import numpy as np
from common import machine, timed
from sklearn.linear_model import LogisticRegression

from tpssl_hf.evaluation.probes import FEW_LABEL_C, few_label_answers_of_draws, few_of_each_class

CLASSES, IMAGES = 100, 5000


def made(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw positive features (N, D) of a falling spectrum and their labels (N,)."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(IMAGES) % CLASSES)
    values = random.normal(size=(CLASSES, width))[labels] + 2 * random.normal(size=(IMAGES, width))
    return np.abs(values / np.sqrt(1 + np.arange(width) / 10)).astype(np.float32), labels


def theirs(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, tolerance: float) -> np.ndarray:
    """Answers of scikit-learn on features that are scaled in the same way."""
    bank, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries))
    center = bank.mean(axis=0)
    scale = np.sqrt(((bank - center) ** 2).mean())
    reader = LogisticRegression(C=FEW_LABEL_C, max_iter=5000, tol=tolerance).fit((bank - center) / scale, labels)
    answers: np.ndarray = reader.predict((queries - center) / scale)
    return answers


def main() -> int:
    """Measure and print the ratios of each round and the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", help="file of features x and labels y; drawn without it")
    parser.add_argument("--width", type=int, default=1280, help="number of features that are drawn")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    file = np.load(options.features) if options.features else None
    features, labels = (file["x"], file["y"]) if file else made(options.width)
    half = len(labels) // 2
    queries, truth = features[half:], labels[half:]
    few = [few_of_each_class(labels[:half], seed) for seed in range(options.draws)]
    draws = [(features[rows], labels[rows], queries) for rows in few]
    few_label_answers_of_draws(draws[:1])
    print(machine())
    found: dict[str, list[np.ndarray]] = {}
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "scikit-learn": []}
    for _ in range(options.rounds):
        times["ours"].append(timed(lambda: found.update(ours=few_label_answers_of_draws(draws))))
        times["scikit-learn"].append(timed(lambda: found.update(usual=[theirs(*draw, 1e-3) for draw in draws])))
    for name, measured in times.items():
        cpu, wall = (statistics.median(column) / options.draws for column in zip(*measured, strict=True))
        print(f"{name}: {1000 * cpu:.1f} CPU-ms and {1000 * wall:.1f} ms a draw")
    for name, place in (("CPU", 0), ("wall", 1)):
        ratios = [other[place] / own[place] for own, other in zip(*times.values(), strict=True)]
        print(f"{name} ratio {statistics.median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})")
    found["converged"] = [theirs(*draw, 1e-6) for draw in draws]  # of the objective itself
    accuracies = {name: np.array([100 * (one == truth).mean() for one in given]) for name, given in found.items()}
    for name, values in accuracies.items():
        print(f"{name}: {values.mean():.2f} %, at most {np.abs(values - accuracies['ours']).max():.2f} from ours")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_cli(main)
