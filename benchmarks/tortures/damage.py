"""Mutants of checkpoints and of model folders, and weight files of strangers."""

import itertools
import json
import pickle
import random
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from forked_runs import Forks
from safetensors.torch import load_file, save_file

from tortures.counts import Count
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.tasks.predict.model import load_model
from tpssl_hf.training.checkpoint import load_latest, save_checkpoint

CHECKPOINT_FILES = ("method.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
MODEL_FILES = ("model.safetensors", "config.json")
Mutation = Callable[[Path, Path, random.Random], None]  # file, the same file of another step or model, draws


def flip(file: Path, other: Path, draws: random.Random) -> None:
    """Flip one bit."""
    data = bytearray(file.read_bytes())
    data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    file.write_bytes(data)


def cut(file: Path, other: Path, draws: random.Random) -> None:
    """Leave out the end."""
    data = file.read_bytes()
    file.write_bytes(data[: draws.randrange(len(data))])


def blank(file: Path, other: Path, draws: random.Random) -> None:
    """Fill up to 512 bytes with zeros, as a file system does that has lost a block."""
    data = bytearray(file.read_bytes())
    start = draws.randrange(len(data))
    end = min(len(data), start + 512)
    data[start:end] = bytes(end - start)
    file.write_bytes(data)


def empty(file: Path, other: Path, draws: random.Random) -> None:
    """Leave nothing."""
    file.write_bytes(b"")


def exchange(file: Path, other: Path, draws: random.Random) -> None:
    """Put the same file of another step or model there."""
    shutil.copyfile(other, file)


def edit(file: Path, other: Path, draws: random.Random) -> None:
    """Change one digit of a text, or the last byte of a tensor."""
    data = bytearray(file.read_bytes())
    digits = [at for at, value in enumerate(data) if 48 <= value <= 57] if file.suffix == ".json" else [len(data) - 1]
    at = draws.choice(digits)
    data[at] = 48 + (data[at] - 48 + 1) % 10 if file.suffix == ".json" else data[at] ^ 1
    file.write_bytes(data)


MUTATIONS: tuple[Mutation, ...] = (flip, cut, blank, empty, exchange, edit)


def mutants(names: tuple[str, ...], count: int) -> Iterator[tuple[str, Mutation, random.Random]]:
    """Yield ``count`` files to change, how, and the draws."""
    for number, (change, name) in zip(range(count), itertools.cycle(itertools.product(MUTATIONS, names))):
        yield name, change, random.Random(number)


def tensors_of_step(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return what the checkpoint of a step holds."""
    generator = torch.Generator().manual_seed(step)
    return {group: {"weight": torch.randn(300, generator=generator)} for group in ("method", "optimizer")}


def checkpoints(place: Path, limit: int | None) -> Count:
    """Damage the newest of three checkpoints; the one before must be used, with a warning."""
    count = Count("mutants of a checkpoint", "the one before is used and the file named")
    for step in (1, 2, 3):
        save_checkpoint(place / "whole", step, tensors_of_step(step), {"step": step}, keep=3)
    for number, (name, change, draws) in enumerate(mutants(CHECKPOINT_FILES, limit or 60)):
        folder = shutil.copytree(place / "whole", place / f"{number}")
        file = folder / "step_3" / name
        change(file, folder / "step_1" / name, draws)
        label = f"{change.__name__} {name} {number}"
        harmless = file.read_bytes() == (place / "whole" / "step_3" / name).read_bytes()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = load_latest(folder)
        step = 3 if harmless else 2
        good = found is not None and found.step == step and found.state == {"step": step}
        good = good and all(
            torch.equal(found.tensors[g]["weight"], t["weight"]) for g, t in tensors_of_step(step).items()
        )
        said = harmless or (len(caught) == 1 and name in str(caught[0].message))
        count.add(label, None if good and said else f"step {found.step if found else None}, {len(caught)} warnings")
        shutil.rmtree(folder)
    return count


def save_model(folder: Path, seed: int) -> Path:
    """Save a small classifier."""
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    shown = Preprocessing(32)
    return save_timm_folder(
        network, folder, preprocessing=shown, provenance={"seed": seed}, label_names=["a", "b", "c"]
    )


def outcome(folder: Path) -> tuple[str, Any, Any]:
    """Load a folder as a classifier and as a backbone; returns what was said, and what was loaded if it was."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = load_model(str(folder), "cpu")
            network, _ = load_backbone("test_resnet", init=str(folder))
        except InputError as error:
            return f"error: {error}", None, None
    return "; ".join(str(warning.message) for warning in caught), model, network


def same(model: Any, network: Any, whole: Any, whole_network: Any) -> bool:
    """Whether a loaded model is the undamaged one: its weights, names and preprocessing."""
    pairs = [(model.network, whole.network), (network, whole_network)]
    for one, other in pairs:
        if any(not torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items()):
            return False
    facts = network.pretrained_cfg == whole_network.pretrained_cfg
    return facts and model.class_names == whole.class_names and model.processor.to_dict() == whole.processor.to_dict()


def models(place: Path, limit: int | None) -> Count:
    """Damage a model's folder; it must be refused, said to be changed, or load as the undamaged one."""
    count = Count("mutants of a model's folder", "refused, said to be changed, or harmless")
    whole, other = save_model(place / "model", 0), save_model(place / "other", 1)
    _, model, network = outcome(whole)
    for number, (name, change, draws) in enumerate(mutants(MODEL_FILES, limit or 60)):
        folder = shutil.copytree(whole, place / f"mutant{number}")
        change(folder / name, other / name, draws)
        try:
            said, found, found_network = outcome(folder)
            silent = not said and not same(found, found_network, model, network)
            trouble = "was loaded silently" if silent else None
        except Exception as error:
            trouble = f"{type(error).__name__}: {str(error)[:200]}"
        count.add(f"{change.__name__} {name} {number}", trouble)
        shutil.rmtree(folder)
    return count


def mutate(forks: Forks, place: Path, limit: int | None) -> list[Count]:
    """Damage checkpoints and models."""
    return [checkpoints(place / "checkpoints", limit), models(place / "models", limit)]


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def header_of(entries: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file with a header of any content."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def hostile_weights(tensors: dict[str, torch.Tensor], canary: Path, place: Path) -> dict[str, bytes]:
    """Return contents of ``model.safetensors`` that must not be taken."""
    good = place / "good.safetensors"
    save_file(tensors, good)
    content = good.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    first, second = [name for name in header if name.endswith("weight")][:2]
    first_entry = header[first]
    torch_file = place / "good.pth"
    torch.save({"state_dict": Canary(canary)}, torch_file)

    def with_entry(**changes: Any) -> bytes:
        return header_of({**header, first: {**first_entry, **changes}}, data)

    found = {f"pickle of protocol {protocol}": pickle.dumps(Canary(canary), protocol) for protocol in range(6)}
    found |= {"torch file": torch_file.read_bytes(), "empty": b"", "seven bytes": b"1234567"}
    found |= {f"header of 2^{bits} bytes": struct.pack("<Q", 2**bits - 1) + b"{}" for bits in (20, 27, 31, 40, 63, 64)}
    found |= {"header that is no JSON": header_of(b"{oops"), "header of a list": header_of([1, 2])}
    found |= {"header nested deeply": header_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)}
    twice = json.dumps(header)[:-1] + f", {json.dumps(first)}: {json.dumps(first_entry)}}}"
    found |= {"a name twice": header_of(twice.encode(), data)}
    found |= {"offsets beyond the end": with_entry(data_offsets=[0, 2**40])}
    found |= {
        "negative offsets": with_entry(data_offsets=[-4, 0]),
        "offsets in disorder": with_entry(data_offsets=[8, 4]),
    }
    found |= {"overlapping tensors": with_entry(data_offsets=header[second]["data_offsets"])}
    found |= {
        "a shape beyond any memory": with_entry(shape=[2**40, 2**20]),
        "a negative shape": with_entry(shape=[-1]),
    }
    found |= {"a shape that overflows": with_entry(shape=[2**62, 4, 4]), "an unknown type": with_entry(dtype="P99")}
    found |= {
        "bytes behind the tensors": content + b"x" * 1000,
        "a hole before the tensors": header_of(header, b"\0" * 8 + data),
    }
    for name, value in (("NaN", float("nan")), ("infinite", float("inf")), ("minus infinite", float("-inf"))):
        spoilt = {key: tensor.clone() for key, tensor in tensors.items()}
        spoilt[first].view(-1)[0] = value
        save_file(spoilt, good)
        found[f"{name} weights"] = good.read_bytes()
    save_file({**tensors, "../../evil": torch.zeros(1)}, good)
    found["a name that is a path"] = good.read_bytes()
    save_file({key: tensor.to(torch.complex64) for key, tensor in tensors.items()}, good)
    found["complex weights"] = good.read_bytes()
    return found


def hostile_configs(config: dict[str, Any], canary: Path, place: Path) -> dict[str, bytes]:
    """Return contents of ``config.json`` that must not be taken."""
    facts = config["pretrained_cfg"]

    def with_facts(**changes: Any) -> dict[str, Any]:
        return {**config, "pretrained_cfg": {**facts, **changes}}

    evil = place / "evil.pth"
    torch.save({"state_dict": Canary(canary)}, evil)
    found: dict[str, Any] = {
        "an architecture on the Hub": {**config, "architecture": "hf-hub:evil/model"},
        "an architecture that is a path": {**config, "architecture": "local-dir:/etc"},
        "an architecture with a scheme": {**config, "architecture": "resnet18.hf-hub:evil/model"},
        "an architecture that is a list": {**config, "architecture": ["test_resnet"]},
        "a checkpoint among the arguments": {**config, "model_args": {"checkpoint_path": str(evil)}},
        "weights from elsewhere": {**config, "model_args": {"pretrained": True}},
        "an overlay": {**config, "model_args": {"pretrained_cfg_overlay": {"file": str(evil)}}},
        "10^9 classes": {**config, "num_classes": 10**9},
        "a negative number of classes": {**config, "num_classes": -3},
        "channels beyond any memory": {**config, "model_args": {"in_chans": 10**9}},
        "a mean that is NaN": with_facts(mean=[float("nan")] * 3),
        "a deviation of 0": with_facts(std=[0.0, 0.0, 0.0]),
        "images of 10^9 pixels a side": with_facts(input_size=[3, 10**9, 10**9]),
        "a crop of 0": with_facts(crop_pct=0.0),
        "model_args that are a list": {**config, "model_args": [1]},
        "pretrained_cfg that is text": {**config, "pretrained_cfg": "x"},
    }
    contents = {name: json.dumps(content).encode() for name, content in found.items()}
    contents |= {"JSON nested deeply": b"[" * 200_000, "a pickle": pickle.dumps(Canary(canary)), "no JSON": b"{"}
    return contents


def own_code(config: dict[str, Any], folder: Path, canary: Path) -> None:
    """Let a folder bring code of its own."""
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: pass\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoImageProcessor": "evil.Config", "AutoModel": "evil.Config"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": auto_map}))


def hand_in(forks: Forks, place: Path, limit: int | None) -> list[Count]:
    """Let strangers' folders be loaded as classifier and as backbone."""
    count = Count("weights and configs of strangers", "no code run, a sentence each")
    canary, whole = place / "canary", save_model(place / "model", 0)
    config, tensors = json.loads((whole / "config.json").read_text()), load_file(whole / "model.safetensors")
    cases = {name: ("model.safetensors", data) for name, data in hostile_weights(tensors, canary, place).items()}
    cases |= {name: ("config.json", data) for name, data in hostile_configs(config, canary, place).items()}
    for name, (file, data) in itertools.islice(cases.items(), limit):
        folder = shutil.copytree(whole, place / "stranger")
        (folder / file).write_bytes(data)
        count.add(name, trouble_with(folder, canary))
        shutil.rmtree(folder)
    folder = shutil.copytree(whole, place / "stranger")
    own_code(config, folder, canary)
    count.add("code in the folder", trouble_with(folder, canary, may_load=True))
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/passwd")
    count.add("a link out of the folder", trouble_with(folder, canary))
    return [count]


def trouble_with(folder: Path, canary: Path, *, may_load: bool = False) -> str | None:
    """Say what is wrong with how a folder was taken."""
    loaders = {
        "classifier": lambda: load_model(str(folder), "cpu"),
        "backbone": lambda: load_backbone("test_resnet", init=str(folder)),
    }
    taken = []
    for name, load in loaders.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load()
                taken.append(name)
            except InputError:
                continue
            except Exception as error:
                return f"as {name} {type(error).__name__}: {str(error)[:200]}"
    if canary.exists():
        canary.unlink()
        return "code was run"
    return "was taken" if len(taken) == 2 and not may_load else None
