from accelerate import Accelerator
from test_loop import Toy, batches

from tpssl_hf.training.loop import LoopSettings, train, train_behind_bar
from tpssl_hf.training.optim import build_optimizer


def test_a_stop_saves_first() -> None:
    method, saved = Toy(), list[int]()
    done = train(
        Accelerator(cpu=True),
        method,
        build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9),
        lambda step: 0.05,
        batches(),
        LoopSettings(12, 8),
        start_step=0,
        log=lambda step, values: None,
        save=saved.append,
        stop=lambda: len(method.seen) >= 3,
    )
    assert done == 3 and saved == [3]


def test_behind_a_bar_it_is_the_same() -> None:
    method, calls = Toy(), list[tuple[str, int]]()
    done = train_behind_bar(
        Accelerator(cpu=True),
        method,
        build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9),
        lambda step: 0.05,
        batches(),
        LoopSettings(5, 8, log_every=2, save_every=4),
        title="toy",
        shown=False,
        start_step=0,
        log=lambda step, values: calls.append(("log", step)),
        save=lambda step: calls.append(("save", step)),
        stop=lambda: False,
    )
    assert done == 5 and calls == [("log", 2), ("log", 4), ("save", 4), ("log", 5), ("save", 5)]
