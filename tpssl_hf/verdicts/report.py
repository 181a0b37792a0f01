"""The files of a verdict (verdict.json, verdict.png, verdict.md, results.json), and the same as an object."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tpssl_hf.config.parser import flat
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir
from tpssl_hf.verdicts.config import VerdictArgs, command_of
from tpssl_hf.verdicts.decision import Decision
from tpssl_hf.verdicts.figure import draw_verdict
from tpssl_hf.verdicts.probe_set import ProbeSet
from tpssl_hf.verdicts.sentence import ranking, sentence, table
from tpssl_hf.verdicts.weights import ANOTHER_BASE

REPORT, NUMBERS, IMAGE, BN_ONLY = "verdict.md", "verdict.json", "verdict.png", "statistics_only"


@dataclass(frozen=True)
class Verdict:
    """A finished verdict.

    Attributes:
        path: its folder, with ``verdict.md``, ``verdict.png`` and every number in ``verdict.json``.
        results: the content of its ``results.json``.
    """

    path: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the verdict that a folder holds."""
        return cls(path, json.loads((path / RESULTS).read_text(encoding="utf-8")))

    @property
    def sentence(self) -> str:
        """What to do and by which numbers; below it a warning where the base is not what was adapted."""
        return str(self.results["sentence"])


def save_report(
    run: RunDir,
    args: VerdictArgs,
    decision: Decision,
    probe_set: ProbeSet,
    store: ImageCache,
    *,
    notes: Sequence[str],
    origins: Mapping[str, WeightsSource],
    seconds: float,
) -> str:
    """Write every file of a verdict but the weights; returns the summary to print."""
    labels = len(probe_set.trials[0].bank) if probe_set.trials else 0
    warnings = [note for note in notes if note.startswith(ANOTHER_BASE)]  # beside the sentence that they qualify
    said = "\n\n".join([sentence(decision, labels=labels, shared=probe_set.shared), *warnings])
    facts = run_facts(
        recipe="verdict",
        recommendation=decision.recommendation,
        reason=decision.reason,
        sentence=said,
        notes=list(notes),
        weights={name: origin.as_dict() for name, origin in origins.items()},
        dataset={"name": store.source_name, "fingerprint": store.fingerprint, "images": len(store)},
        questions=_facts_of(probe_set, labels),
        seconds=seconds,
        config=flat(args),
    )
    run.write_json(NUMBERS, {**facts, **_numbers(decision)})
    files = [run.path / REPORT, run.path / NUMBERS]
    if probe_set.trials:
        compared = f"{store.source_name}, {len(probe_set.trials)} draws of {labels} labels"
        title = f"Did adapting help? {said.partition(':')[0]}; {compared}"
        draw_verdict(run.path / IMAGE, decision, labels=labels, title=title)
        files.append(run.path / IMAGE)
    remarks = [ranking(decision), *notes] if ranking(decision) else [*notes]
    if decision.recommendation == "statistics":
        remarks.append(f"The base with re-estimated BatchNorm statistics is in {run.path / BN_ONLY}.")
    remarks = [note for note in remarks if note not in warnings]
    text = _markdown(args, decision, said, probe_set, facts["dataset"], remarks)
    (run.path / REPORT).write_text(text, encoding="utf-8")
    run.write_json(RESULTS, facts)
    return "\n".join(
        [f"\n{said}\n", table(decision), "", *remarks, f"  {seconds:.0f} s; in {', '.join(map(str, files))}"]
    )


def _facts_of(probe_set: ProbeSet, labels: int) -> dict[str, Any]:
    return {
        "chosen": probe_set.chosen,
        "images_looked_at": len(probe_set.indices),
        "labels_per_draw": labels,
        "draws": len(probe_set.trials),
        "asked_per_draw": len(probe_set.trials[0].queries) if probe_set.trials else 0,
        "same_for_all_draws": probe_set.shared,
        "class_names": list(probe_set.class_names),
    }


def _numbers(decision: Decision) -> dict[str, Any]:
    required = decision.required and {"draws": decision.required.draws, "questions": decision.required.questions}
    return {
        "rows": [row.as_dict() for row in decision.rows],
        "comparisons": [entry.as_dict() for entry in decision.comparisons],
        "required_sample_size": required,
    }


def _markdown(
    args: VerdictArgs,
    decision: Decision,
    said: str,
    probe_set: ProbeSet,
    dataset: Mapping[str, Any],
    remarks: Sequence[str],
) -> str:
    """Return verdict.md."""
    parts = ["# Did adapting help?", said, table(decision)]
    if probe_set.trials:
        level = 100 * decision.comparisons[0].probe.level
        together = ", so that those against one control all hold together at 95 %" if level > 95 else ""
        parts.append(
            "Linear probe and kNN: mean ± standard deviation over label seeds; clusters: k-means, best pairing "
            "with the classes, over its seeds. Differences of the linear probe are paired, with "
            f"{level:.3g} % intervals over label seeds and queries{together}. Adapting may have seen these "
            "images, never their labels."
        )
        parts.append(f"![each label seed, and the differences]({IMAGE})")
    parts += remarks
    where = f"{dataset['name']} (training images, fingerprint {dataset['fingerprint']})"
    parts.append(f"What was done: {where}; features of {len(probe_set.indices):,} images; {probe_set.chosen}.")
    parts.append(f"    {shlex.join(command_of(args))}")
    return "\n\n".join(parts) + "\n"
