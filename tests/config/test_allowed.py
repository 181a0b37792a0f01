import math
from dataclasses import dataclass
from typing import Literal

import pytest

from tpssl_hf.config.allowed import (
    ABOVE_0,
    ANY,
    BELOW_1,
    BETWEEN_0_AND_1,
    FROM_1,
    SEEDS,
    SHARE,
    SHARE_ABOVE_0,
    Numbers,
)
from tpssl_hf.config.parser import key, parse_args
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.classify.config import parse_classify
from tpssl_hf.tasks.pretrain.config import parse_pretrain
from tpssl_hf.tasks.segment.config import parse_segment


@dataclass(frozen=True)
class Keys:
    """Keys of every kind."""

    count: int = key(3, "a", within=FROM_1)
    cap: int | None = key(None, "a", within=FROM_1)
    weight: float = key(0.5, "a")
    share: float = key(0.5, "a", within=SHARE)
    free: float = key(0.5, "a", within=ANY)
    labels: int | str = key(20, "a")
    on: bool = key(False, "a")
    flip: bool | None = key(None, "a")
    kind: Literal["one", "two", "three"] = key("one", "a")
    only: Literal["one"] | None = key(None, "a")


@dataclass(frozen=True)
class Args:
    """Arguments of one group."""

    keys: Keys


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (FROM_1, (1, 2.5), (0, 0.99, -1), "a number from 1 on"),
        (ABOVE_0, (1e-9, 7), (0, -1), "a number above 0"),
        (SHARE, (0, 0.5, 1), (-0.1, 1.1), "a number from 0 to 1"),
        (SHARE_ABOVE_0, (0.1, 1), (0, 1.1), "a number above 0, at most 1"),
        (BELOW_1, (0, 0.999), (1, -0.1), "a number from 0, below 1"),
        (BETWEEN_0_AND_1, (0.5,), (0, 1), "a number above 0 and below 1"),
        (SEEDS, (0, 4294967295), (-1, 4294967296), "a number from 0 to 4294967295"),
        (ANY, (-3, 3), (), "a finite number"),
    ],
)
def test_ranges_hold_what_they_say(
    allowed: Numbers, inside: tuple[float, ...], outside: tuple[float, ...], text: str
) -> None:
    assert str(allowed) == text
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in (*outside, math.nan, math.inf, -math.inf))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("count", "0", "count is 0; give a number from 1 on."),
        ("cap", "-2", "cap is -2; give a number from 1 on, or leave it out."),
        ("weight", "-1e-3", "weight is -0.001; give a number from 0 on."),
        ("weight", ".nan", "weight is nan; give a number from 0 on."),
        ("weight", ".inf", "weight is inf; give a number from 0 on."),
        ("share", "1.5", "share is 1.5; give a number from 0 to 1."),
        ("free", ".nan", "free is nan; give a finite number."),
        ("count", "1.5", "count takes a whole number. Got value: 1.5"),
        ("cap", "1e3", "cap takes a whole number. Got value: 1e3"),
        ("weight", "much", "weight takes a number. Got value: much"),
        ("on", "maybe", "on takes true or false. Got value: maybe"),
        ("flip", "2", "flip takes true or false. Got value: 2"),
        ("kind", "four", "kind takes one, two or three. Got value: four"),
        ("cap", "", "cap takes a whole number. Got value: nothing"),
        ("kind", "", "kind takes one, two or three. Got value: nothing"),
        ("only", "two", "only takes one. Got value: two"),
    ],
)
def test_what_a_key_does_not_allow_is_one_sentence(name: str, value: str, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_args(Args, [f"--{name}={value}"])
    assert str(refused.value) == sentence


def test_what_is_allowed_passes() -> None:
    given = ["--count=1", "--cap=2", "--weight=0", "--share=1", "--free=-5", "--labels=-1", "--on", "--kind=two"]
    keys = parse_args(Args, given).keys
    assert keys == Keys(count=1, cap=2, weight=0.0, share=1.0, free=-5.0, labels=-1, on=True, kind="two")


@pytest.mark.parametrize("parse", [parse_pretrain, parse_classify, parse_segment])
@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 0},
        {"seed": -1},
        {"save_every": 0},
        {"log_every": 0},
        {"keep_checkpoints": 0},
        {"momentum": 1},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"max_steps": -1},
        {"limit_images": 0},
        {"cpu_threads": 0},
    ],
)
def test_numbers_that_would_end_a_run_or_spoil_it_are_refused(parse, given: dict[str, float]) -> None:
    (name,) = given
    with pytest.raises(InputError, match=f"^{name} is .*; give a number"):
        parse(given)
