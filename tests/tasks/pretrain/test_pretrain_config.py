"""What depends on where a target pretraining starts."""

import pytest

from tpssl_hf.tasks.pretrain.config import ADAMW_RATE, PretrainArgs, parse_pretrain

IMAGES = ["--dataset", "somewhere", "--backbone", "test_resnet"]


def parsed(*keys: str) -> PretrainArgs:
    return parse_pretrain([*IMAGES, *keys])


@pytest.mark.parametrize(
    ("keys", "optimizer", "rate"),
    [
        (["--init", "timm"], "adamw", ADAMW_RATE),
        (["--init", "timm", "--method", "byol"], "adamw", ADAMW_RATE),
        (["--init", "random"], "sgd", 0.03),
        (["--init", "random", "--method", "byol"], "lars", 0.3),
        (["--init", "timm", "--optimizer", "sgd"], "sgd", 0.003),
        (["--init", "timm", "--method", "byol", "--optimizer", "lars"], "lars", 0.3),
        (["--init", "random", "--optimizer", "adamw"], "adamw", ADAMW_RATE),
        (["--init", "timm", "--base_learning_rate", "0.1"], "adamw", 0.1),
    ],
)
def test_optimizer_and_rate_follow_the_start(keys: list[str], optimizer: str, rate: float) -> None:
    optim = parsed(*keys).optim
    assert (optim.optimizer, optim.base_learning_rate) == (optimizer, pytest.approx(rate))


def test_the_pull_toward_random_weights_is_none() -> None:
    assert parsed("--init", "random").task.l2_weight == 0.0 and parsed("--init", "timm").task.l2_weight == 1e-2


def test_the_digits_start_from_what_is_at_hand() -> None:
    asked = []

    def starter() -> dict[str, str]:
        asked.append(1)
        return {"backbone": "test_resnet", "init": "weights"}

    args = parse_pretrain([], starter=starter)
    assert (args.model.backbone, args.model.init, args.data.dataset) == ("test_resnet", "weights", "digits")
    assert (args.optim.optimizer, args.run.output_dir) == ("adamw", "outputs/digits")
    assert parse_pretrain(["--max_steps", "7"], starter=starter).optim.max_steps == 7
    del asked[:]
    assert parse_pretrain([]).model.init == "random"
    for given in (["--init", "random"], ["--method", "byol"], IMAGES):
        assert parse_pretrain(given, starter=starter).model.init == "random"
    assert not asked
    given_weights, at_hand = parse_pretrain(["--init", "timm"]), parse_pretrain([], starter=starter)
    assert given_weights.optim == at_hand.optim and given_weights.task == at_hand.task
