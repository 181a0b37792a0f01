"""NaN and infinities at many places of a training, and features that are no numbers."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from bad_numbers import LASTING, PASSING, all_cases, trouble_of
from forked_runs import Fault, Forks, Runs
from safetensors.torch import load_file
from small_runs import RECIPES, as_arguments, classify_keys, pretrain_keys

from tortures.counts import Count
from tpssl_hf.models.sealed import names_of_not_finite
from tpssl_hf.training.nonfinite_guard import NonFiniteGuard


def trainings(place: Path, limit: int | None) -> Iterator[Count]:
    """Make one number of small trainings bad, each at its own place and step."""
    passing = Count("NaN or infinite for one step: " + ", ".join(PASSING), "all state is that of the step before")
    lasting = Count("NaN or infinite for good: " + ", ".join(LASTING), "a sentence; then as if it had not been")
    usual: Any = NonFiniteGuard.reading_is_free
    for number, case in enumerate(all_cases()[:limit]):
        kept = passing if case.place in PASSING else lasting
        kept.add(str(case), trouble_of(case, place / f"{number}", place / "whole", setattr))
    NonFiniteGuard.reading_is_free = usual
    yield passing
    yield lasting


def features(forks: Forks, place: Path, limit: int | None) -> Iterator[Count]:
    """Let a network make no numbers of one batch of images, at every look at features in a run."""
    cache = place / "cache"
    labeled = {
        "dataset": "digits",
        "limit_images": 160,
        "max_steps": 10,
        "probe_images": 80,
        "health_every": 0.1,
        "base_learning_rate": 0.3,
    }
    runs: dict[str, dict[str, Any]] = {
        "pretrain": pretrain_keys(place, cache) | labeled | {"init": place / "start" / "model"},
        "classify": classify_keys(cache) | {"select": "best"},
    }
    first = place / "start"
    keys = pretrain_keys(place, cache) | labeled | {"max_steps": 1}
    assert Runs(forks, RECIPES["pretrain"]).run(as_arguments(keys, first), place / "start.log") == 0
    for name, keys in runs.items():
        kept = Count(f"no numbers in a look at features, {name}", "a finite model, or a sentence; then a finite model")
        for call in count(1):
            run, log = Runs(forks, RECIPES[name]), place / f"{name}-{call}.log"
            arguments = as_arguments(keys, place / f"{name}-{call}")
            code = run.run(arguments, log, Fault("shown", call, "nan"))
            if (limit and call > limit) or "no numbers from here" not in log.read_text():
                break
            kept.add(
                f"look {call}",
                ended_badly(code, log)
                or code
                and not_finished(run, arguments, log)
                or spoilt(place / f"{name}-{call}"),
            )
        yield kept


def ended_badly(code: int, log: Path) -> str | None:
    """Say what is wrong with how a run ended: neither finished nor with a sentence."""
    said = log.read_text()
    good = "Traceback" not in said and (code == 0 or code == 2 and "\nerror: " in said)
    return None if good else f"ended with {code}: {said[-500:]!r}"


def not_finished(run: Runs, arguments: list[str], log: Path) -> str | None:
    """Say what is wrong if the same command does not end well."""
    return ended_badly(code, log) or "not finished" if (code := run.run(arguments, log)) else None


def spoilt(folder: Path) -> str | None:
    """Name a saved model that holds no numbers."""
    for path in folder.glob("model*/*.safetensors"):
        if bad := names_of_not_finite(load_file(path)):
            return f"{path.parent.name} {bad[:3]}"
    return None


def put_in(forks: Forks, place: Path, limit: int | None) -> Iterator[Count]:
    """Make numbers bad."""
    yield from trainings(place, limit)
    yield from features(forks, place, limit)
