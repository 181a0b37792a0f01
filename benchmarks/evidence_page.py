"""The page and the picture that `does_it_help.py page` makes of its cells."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats

PICTURE, CLAIM = (Path("images") / f"{name}.svg" for name in ("evidence", "adapt_then_finetune"))  # beside the page
COLORS = {"raw pixels": "#999999", "base": "#56b4e9", "bn_only": "#e69f00", "adapted": "#009e73"}
HEAD = """# Does it help?

Written by `python benchmarks/does_it_help.py page` from the JSON files in `benchmarks/evidence`. Accuracy on the test
split in per cent, mean and standard deviation over label seeds; differences are paired by label seed, with a 95 %
interval of Student's t. Weights stand with the method that adapted them; `--method auto`, the default, takes `distill`
for lite0 on all of these data, and `moco` for resnet18_tin.
"""


def write_page(cells_folder: Path, page: Path) -> None:
    """Write the page from the JSON files in ``cells_folder``, and the picture beside it."""
    everything = [json.loads(file.read_text()) for file in sorted(cells_folder.glob("*.json"))]
    cells, masked = [c for c in everything if "probes" in c], [c for c in everything if "masks" in c]
    claims = [cell for cell in everything if "adaptations" in cell]
    draw(cells, page.parent / PICTURE)
    parts = [HEAD, f"![probe accuracy of each pair, before and after]({PICTURE.as_posix()})", "", *probe_table(cells)]
    parts += [*learner_table(cells), *claim_table(claims, page), *labels_table(cells)]
    parts += [*crops_table(cells), *masks_table(masked)]
    machines = sorted({cell["machine"] for cell in everything})
    parts += ["", f"Machine: {'; '.join(machines)}. Not measured on a GPU."]
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(everything)} cells: {page}\n")


def probe_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of frozen features."""
    lines = [
        "## Frozen features",
        "",
        "A probe is logistic regression on frozen features. *bn_only*: the base with re-estimated BatchNorm "
        "statistics and nothing else. Images have 64 pixels a side, but for *own size*: as many as those that the "
        "weights were trained on. *saved*: which network `model/` holds, by labels of other training images.",
        "",
        "| weights | data | labels a class | raw pixels | base, own size | base | bn_only | adapted | "
        "adapted − base | adapted − bn_only | label spreading, base | label spreading, adapted | BatchNorm | saved | "
        "steps × images | CPU minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        rows = cell["probes"]
        values = [mean_of(rows[name]) for name in COLORS]
        values.insert(1, at_own_size(cell))
        values += [paired(rows[name], rows["adapted"]) for name in ("base", "bn_only")]
        values += [mean_of(rows[f"label spreading, {name}"]) for name in ("base", "adapted")]
        values += [cell["batchnorm"]["mode"], cell["saved"], f"{cell['steps']} × {cell['batch_size']}"]
        values += [f"{cell['cpu_minutes']:.0f}"]
        lines.append(f"| {named(cell)} | {cell['data']} | {cell['per_class']} | {' | '.join(values)} |")
    return lines


def named(cell: Mapping[str, Any]) -> str:
    """Name weights and method of a cell."""
    return f"{cell['weights']}, {cell['method']}"


def at_own_size(cell: Mapping[str, Any]) -> str:
    """Write what a probe makes of the base at the size of its weights; nothing where that is the size of the cell."""
    found = cell.get("own_size")
    return f"{mean_of(found['probe'])} ({found['image_size']} px)" if found else ""


def learner_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of finetuned networks; none where nothing was finetuned."""
    learned = [(cell, name, done) for cell in cells for name, done in cell["learners"].items() if done]
    if not learned:
        return []
    lines = [
        "",
        "## Finetuned",
        "",
        "FixMatch is as published, without the alignment that is its default here (`alignment=0`).",
        "",
        "| weights | data | labels a class | learner | accuracy | minus the probe of its start | "
        "minus the base's probe at its own size | minus supervised from the same start | minus the same from base | "
        "steps | CPU minutes each | label seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, name, done in learned:
        learner, _, start = name.rpartition(" from ")
        probe = {str(seed): value for seed, value in enumerate(cell["probes"][start], 1)}
        others = (f"supervised from {start}", f"{learner} from base")
        values = [mean_of([found["accuracy"] for found in done.values()]), against(done, probe)]
        own = enumerate(cell["own_size"]["probe"] if "own_size" in cell else [], 1)
        values.append(against(done, {str(seed): value for seed, value in own}))
        for other in others:
            known = {seed: found["accuracy"] for seed, found in cell["learners"].get(other, {}).items()}
            values.append("" if other == name else against(done, known))
        one = next(iter(done.values()))
        values.append(f"{one['steps']}{', bf16' if one.get('precision') == 'bf16' else ''}")
        values.append(f"{statistics.mean(found['cpu_seconds'] for found in done.values()) / 60:.1f}")
        what = f"{named(cell)} | {cell['data']} | {cell['per_class']}"
        lines.append(f"| {what} | {name} | {' | '.join(values)} | {len(done)} |")
    return lines


def claim_table(cells: Sequence[Mapping[str, Any]], page: Path) -> list[str]:
    """Return the lines of what adapting adds to a finetuned network, and draw it; none where it was not asked."""
    if not cells:
        return []
    draw_claim(cells, page.parent / CLAIM)
    lines = [
        "",
        "## What adapting adds to a finetuned network",
        "",
        "The claim of the paper: FixMatch from adapted weights minus FixMatch from the base, with the same labels and "
        "seeds; `benchmarks/adapt_then_finetune.py` says how.",
        "",
        "![FixMatch from adapted weights minus FixMatch from the base, by labels of each class and by epochs]"
        f"({CLAIM.as_posix()})",
        "",
        "| weights | data | labels a class | adapted by | epochs | its CPU minutes | from base | from adapted | "
        "difference | FixMatch | label seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        for count, adaptation, base, adapted in claimed(cell):
            minutes, (method, epochs) = cell["adaptations"][adaptation]["cpu_minutes"], adaptation.split(":")
            values = [mean_of(base), mean_of(adapted), paired(base, adapted), described(cell), str(len(base))]
            what = f"{cell['weights']} | {cell['data']} | {count} | {method} | {epochs} | "
            what += "not measured" if minutes is None else f"{minutes:.0f}"
            lines.append(f"| {what} | {' | '.join(values)} |")
    return lines


def described(cell: Mapping[str, Any]) -> str:
    """Return the steps of FixMatch, and whether its predictions were aligned."""
    aligned = f", alignment {cell['alignment']:g}" if cell.get("alignment") else ", as published"
    return f"{cell['max_steps']} steps{aligned}" + (", bf16" if cell.get("precision") == "bf16" else "")


def claimed(cell: Mapping[str, Any]) -> list[tuple[str, str, list[float], list[float]]]:
    """Return labels a class, adaptation, and the accuracies from base and adapted of label seeds that both have."""
    found = []
    for count, starts in sorted(cell["accuracies"].items(), key=lambda item: int(item[0])):
        for adaptation in sorted(set(starts) - {"base"}, key=lambda one: (one.split(":")[0], int(one.split(":")[1]))):
            seeds = sorted(set(starts["base"]) & set(starts[adaptation]), key=int)
            pair = [[starts[start][seed]["accuracy"] for seed in seeds] for start in ("base", adaptation)]
            if seeds:
                found.append((count, adaptation, *pair))
    return found


def draw_claim(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the differences with their intervals: by labels of each class, and by epochs of adapting."""
    by_labels: dict[str, dict[int, tuple[float, float]]] = {}
    by_epochs: dict[str, dict[int, tuple[float, float]]] = {}
    for cell in cells:
        for count, adaptation, before, after in claimed(cell):
            method, _, epochs = adaptation.partition(":")
            name = f"{cell['weights']}, {cell['data']}, {method}" + (", aligned" if cell.get("alignment") else "")
            if len(before) > 1:
                span = difference(before, after)
                by_labels.setdefault(f"{name}, {epochs} ep.", {})[int(count)] = span
                by_epochs.setdefault(f"{name}, {count} a class", {})[int(epochs)] = span
    figure = Figure(figsize=(9.5, 4.8))
    panels = {"labels of each class": by_labels, "epochs of adapting": by_epochs}
    for axis, (label, lines) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        lines = {name: spans for name, spans in lines.items() if len(spans) > 1}
        for number, (name, spans) in enumerate(sorted(lines.items())):
            places = [count * (1.0 + 0.05 * number) for count in sorted(spans)]  # beside one another
            means, halves = zip(*(spans[count] for count in sorted(spans)), strict=True)
            axis.errorbar(places, means, halves, fmt="o-", capsize=3, label=name)
        ticks = sorted({count for spans in lines.values() for count in spans})
        axis.axhline(0.0, color="#999999", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(count) for count in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.tick_params(labelleft=True)
        axis.set_ylabel("points, with a 95 % interval")
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle("FixMatch: from adapted weights minus from the base", fontsize=10)
    figure.tight_layout()
    with rc_context({"svg.hashsalt": "claim"}):
        figure.savefig(path, metadata={"Date": None})


def labels_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of probes with more and fewer labels."""
    counts = sorted({count for cell in cells for count in cell["by_labels"]["base"]}, key=int)
    lines = [
        "",
        "## More and fewer labels",
        "",
        "What adapting adds to the base's probe (adapted − base), by labels of each class.",
        "",
        f"| weights | data | {' | '.join(counts)} |",
        f"|---|---|{'---|' * len(counts)}",
    ]
    for cell in cells:
        before, after = (cell["by_labels"][row] for row in ("base", "adapted"))
        values = [paired(before[count], after[count]) if count in before else "" for count in counts]
        lines.append(f"| {named(cell)} | {cell['data']} | {' | '.join(values)} |")
    return lines


def crops_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of what can be said without labels."""
    lines = [
        "",
        "## Without labels",
        "",
        "What `--backbone_batchnorm auto` looks at where there are no labels: how well an image is known again in "
        "another crop (mean reciprocal rank among 1,000 images), with the difference to the base; beside it what "
        "labels say of the same networks.",
        "",
        "| weights | data | rank, base | bn_only − base | probe, bn_only − base | last − base | probe, last − base |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        values = [f"{cell['crops']['base']['rank']:.3f}"]
        for row in ("bn_only", "last"):
            known = cell["crops"].get(row)
            values += [in_ranks(known) if known else "", paired(cell["probes"]["base"], cell["probes"][row])]
        lines.append(f"| {named(cell)} | {cell['data']} | {' | '.join(values)} |")
    return lines


def masks_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of segmenters; none where there are none."""
    if not cells:
        return []
    lines = [
        "",
        "## Segmentation with few masks",
        "",
        "Mean IoU on the test split in per cent; `benchmarks/does_it_help_masks.py` says how. *adapted* is by PixPro.",
        "",
        "| weights | data | masks | learner | mean IoU | minus supervised from the same start | "
        "minus the same from base | minus the same from bn_only | steps | CPU minutes each | label seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        scores = {
            name: {seed: found["mean_iou"] for seed, found in done.items()} for name, done in cell["learners"].items()
        }
        for name, done in cell["learners"].items():
            learner, _, start = name.rpartition(" from ")
            values = [mean_of(list(scores[name].values()))]
            for other in (f"supervised from {start}", f"{learner} from base", f"{learner} from bn_only"):
                seeds = sorted(set(scores[name]) & set(scores.get(other, {})))
                pairs = [[scores[row][seed] for seed in seeds] for row in (other, name)]
                values.append(paired(*pairs) if seeds and other != name else "")
            minutes = statistics.mean(found["cpu_seconds"] for found in done.values()) / 60
            what = f"{cell['weights']} | {cell['data']} | {cell['masks']} | {name}"
            steps = f"{cell['steps']}, {cell['shorter_side']} px"
            lines.append(f"| {what} | {' | '.join(values)} | {steps} | {minutes:.1f} | {len(done)} |")
    return lines


def in_ranks(found: Mapping[str, float]) -> str:
    """Write a difference of mean reciprocal ranks with its interval."""
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]".replace("-", "−")


def against(done: Mapping[str, Mapping[str, float]], other: Mapping[str, float]) -> str:
    """Write the paired difference over the label seeds that both have."""
    seeds = sorted(set(done) & set(other))
    return paired([other[seed] for seed in seeds], [done[seed]["accuracy"] for seed in seeds]) if seeds else ""


def paired(before: Sequence[float], after: Sequence[float]) -> str:
    """Write the difference of paired values in points, with its 95 % interval."""
    if len(before) < 2:
        return f"{100 * (after[0] - before[0]):+.1f} (one seed)".replace("-", "−")
    mean, half = difference(before, after)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]".replace("-", "−")


def difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference of paired values in points, and half of its 95 % interval of Student's t."""
    changes = [100 * (b - a) for a, b in zip(before, after, strict=True)]
    half = float(stats.t.ppf(0.975, len(changes) - 1)) * statistics.stdev(changes) / len(changes) ** 0.5
    return statistics.mean(changes), half


def mean_of(values: Sequence[float]) -> str:
    """Write a mean in per cent, with the standard deviation over label seeds."""
    plus = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{plus}"


def draw(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a row for each pair: the probe on raw pixels, base, bn_only and adapted, with an arrow from base to it."""
    figure = Figure(figsize=(7.5, 1.2 + 0.3 * len(cells)))
    axis = figure.subplots()
    rows = range(len(cells))
    for name, color in COLORS.items():
        means = [100 * statistics.mean(cell["probes"][name]) for cell in cells]
        errors = [100 * statistics.stdev(cell["probes"][name]) for cell in cells]
        axis.errorbar(means, rows, xerr=errors, fmt="o", color=color, label=name, markersize=5, elinewidth=0.8)
    for row, cell in enumerate(cells):
        before, after = (100 * statistics.mean(cell["probes"][name]) for name in ("base", "adapted"))
        if before != after:
            axis.annotate("", (after, row), (before, row), arrowprops={"arrowstyle": "->", "color": COLORS["adapted"]})
    axis.set_yticks(rows, [f"{cell['data']}: {named(cell)}" for cell in cells], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("probe accuracy, %")
    axis.set_title(f"Frozen features, {cells[0]['per_class']} labels a class", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.05 - 0.9 / len(cells)))
    figure.tight_layout()
    with rc_context({"svg.hashsalt": "evidence"}):  # so that the same cells give the same file
        figure.savefig(path, metadata={"Date": None})
