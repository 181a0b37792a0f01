"""Which precision, memory format and number of threads a CPU trains a network fastest with: timed, not guessed."""

import copy
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tpssl_hf.files.atomic import replacing_file
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.batchnorm import freeze_statistics, keep_frozen
from tpssl_hf.models.cpu_convolutions import fast_convolutions

MOST_IMAGES = 64  # in a timed pass
ROUNDS = 3  # passes of a setting after the first, at most; the fastest counts
SECONDS = 3.0  # about so long all passes take, by fewer images and rounds where a network is large
CLEAR_GAIN = 1.1  # speed over the default's, below which the default stays, so that numbers are the same more often
CLEAR_GAIN_OF_THREADS = 1.25  # the same for another number of threads: a second one may only be half a core
HOPELESS = 1.5  # times the best so far, from which on a setting is not timed again; twice that in the first pass
GROWTH = 1.5  # of a pass's time at least, with twice the images
TIMED = (
    "with fast_convolutions, of dilated ones too"  # what a kept measurement is of; another name makes all of them anew
)


@dataclass(frozen=True)
class Setting:
    """How a CPU computes.

    Attributes:
        precision: of convolutions and matrix products.
        memory_format: of weights and images.
        threads: of this process.
    """

    precision: Literal["fp32", "bf16"]
    memory_format: Literal["channels_last", "contiguous"]
    threads: int

    def __str__(self) -> str:
        """Name it for people."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.precision}, {self.memory_format}, {threads}"


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        backbone: a timm model; its weights are random ones.
        size: height and width of the images.
        images: of a pass, at most.
        statistics_frozen: whether BatchNorm stays on running statistics.
    """

    backbone: str
    size: tuple[int, int]
    images: int = MOST_IMAGES
    statistics_frozen: bool = False


Times = Mapping[Setting, float]  # seconds per image, forward and backward; the default comes first


def sensible(*, bf16: bool, threads: int, more_threads: int | None) -> list[Setting]:
    """Return the settings to choose from, first the default: bfloat16 if it is multiplied, and channels_last.

    Args:
        bf16: whether the CPU multiplies bfloat16.
        threads: in use.
        more_threads: another number that is worth a try, if there is one.
    """
    precisions: list[Literal["fp32", "bf16"]] = ["bf16", "fp32"] if bf16 else ["fp32"]
    formats: list[Literal["channels_last", "contiguous"]] = ["channels_last", "contiguous"]
    numbers = [threads] if more_threads is None else [threads, more_threads]
    # bfloat16's weight gradients may collapse with several threads; then they are timed, and passed over
    return [Setting(p, layout, count) for count in numbers for p in precisions for layout in formats]


def fastest(times: Times) -> Setting:
    """Return the fastest setting, or the first, which is the default, unless another one is clearly faster."""
    default = next(iter(times))
    best = min((setting for setting in times if setting.threads == default.threads), key=lambda one: times[one])
    chosen = best if times[default] >= CLEAR_GAIN * times[best] else default
    best = min(times, key=lambda one: times[one])
    return best if times[chosen] >= CLEAR_GAIN_OF_THREADS * times[best] else chosen


def sentence(times: Times) -> str:
    """Say what is chosen and what it gains."""
    default, chosen = next(iter(times)), fastest(times)
    if chosen != default:
        return f"measured here: {chosen}; {times[default] / times[chosen]:.2f} times as fast as {default}"
    other = min((setting for setting in times if setting != default), key=lambda one: times[one])
    return f"measured here: {chosen}, as by default; {other} is {times[default] / times[other]:.2f} times as fast"


def table(times: Times) -> str:
    """Return the settings with their images per second and their speed over the default's, fastest first."""
    default, rows = next(iter(times)), ["precision  memory format  threads  images/s  x default"]
    for setting in sorted(times, key=lambda setting: times[setting]):
        rate, gain = 1.0 / times[setting], times[default] / times[setting]
        row = f"{setting.precision:9}  {setting.memory_format:13}  {setting.threads:7}  {rate:8.1f}  {gain:9.2f}"
        rows.append(f"{row}{'  chosen' if setting == fastest(times) else ''}")
    return "\n".join(rows)


def measure(work: Workload, settings: Sequence[Setting], seconds: float = SECONDS) -> dict[Setting, float]:
    """Time forward and backward passes of a network with each setting in turn, so that all meet the same neighbors.

    Args:
        work: network and images.
        settings: the default first.
        seconds: for all timed passes, roughly; as many images as fit are in a pass, at least two.

    Returns:
        Seconds per image, the least of a few passes.

    Raises:
        InputError: if the network cannot be made.
    """
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            run = passes_of(work)
        return _measured(run, work.images, settings, seconds)
    finally:
        torch.set_num_threads(threads)


def passes_of(work: Workload) -> Callable[[Setting, int], float]:
    """Return what makes one pass with (setting, number of images) and tells the seconds it took.

    They are those in which the calling thread worked, so that other programs on the machine hardly count. It has its
    part in all that several threads do together.
    """
    side = work.size[0] if work.size[0] == work.size[1] else None
    network, _ = load_backbone(work.backbone, init="random", image_size=side)
    if work.statistics_frozen:
        freeze_statistics(network)
    keep_frozen(network.train())
    images = torch.randn(work.images, 3, *work.size)
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    networks: dict[str, nn.Module] = {
        name: copy.deepcopy(network).to(memory_format=layout) for name, layout in layouts.items()
    }

    def run(setting: Setting, count: int) -> float:
        torch.set_num_threads(setting.threads)
        shown: Tensor = images[:count].contiguous(memory_format=layouts[setting.memory_format])
        learner = networks[setting.memory_format]
        began = time.thread_time()
        with fast_convolutions(shown.device):
            with torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "bf16"):
                features: Tensor = learner(shown)
            features.float().square().mean().backward()  # type: ignore[no-untyped-call]
        taken = time.thread_time() - began
        learner.zero_grad(set_to_none=True)
        return taken

    return run


def _measured(
    run: Callable[[Setting, int], float], most: int, settings: Sequence[Setting], seconds: float
) -> dict[Setting, float]:
    began, count, allowed = time.perf_counter(), min(2, most), seconds / (2 * (len(settings) + 2))
    default = next(iter(settings))
    if run(default, count) < allowed:  # the first pass of all, which takes longer
        while count < most and GROWTH * run(default, count) < allowed:
            count = min(2 * count, most)
    times = {setting: run(setting, count) for setting in settings}  # memory is allocated and kernels are chosen
    worth = [setting for setting in settings if times[setting] < 2 * HOPELESS * min(times.values())]
    for _ in range(ROUNDS):
        for setting in worth:
            times[setting] = min(times[setting], run(setting, count))
        worth = [setting for setting in worth if times[setting] < HOPELESS * min(times.values())]
        if time.perf_counter() - began > seconds:
            break
    return {setting: taken / count for setting, taken in times.items()}


def remembered(
    folder: Path, machine: str, work: Workload, settings: Sequence[Setting]
) -> tuple[dict[Setting, float], bool]:
    """Return what was measured before with the same machine, network, images and settings, else measure and keep it.

    Args:
        folder: where it is kept, a small file each.
        machine: what tells it from others, see :func:`this_machine`.
        work: network and images.
        settings: the default first.

    Returns:
        Seconds per image, and whether they were measured now.
    """
    key = {
        "machine": machine,
        "timed": TIMED,
        "work": asdict(work),
        "settings": [asdict(setting) for setting in settings],
    }
    file = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # one that cannot be read is made again
        kept = json.loads(file.read_text(encoding="utf-8"))["seconds_per_image"]
        return {setting: float(kept[str(setting)]) for setting in settings}, False
    times = measure(work, settings)
    found = {**key, "seconds_per_image": {str(setting): taken for setting, taken in times.items()}}
    with suppress(OSError):  # it is measured again next time
        folder.mkdir(parents=True, exist_ok=True)
        with replacing_file(file, folder / f".{uuid.uuid4().hex}.tmp") as temporary:
            temporary.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return times, True


def this_machine() -> str:
    """Name the CPU, its instructions and torch, as far as they decide what is fast."""
    name = "unknown CPU"
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
