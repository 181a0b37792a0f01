from collections.abc import Callable

import pytest
from forked_runs import CLASSIFY, SEGMENT, Forks, Runs
from small_runs import as_arguments, pretrain_keys, write_images


@pytest.fixture(scope="session")
def runs(forks: Forks) -> Runs:
    """Runs of recipes/target_pretrain.py."""
    return Runs(forks)


@pytest.fixture(scope="session")
def classifying_runs(forks: Forks) -> Runs:
    """The same of recipes/ssl_classify.py."""
    return Runs(forks, CLASSIFY)


@pytest.fixture(scope="session")
def segmenting_runs(forks: Forks) -> Runs:
    """The same of recipes/ssl_segment.py."""
    return Runs(forks, SEGMENT)


@pytest.fixture(scope="session")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Arguments of a run of twelve steps in three epochs over 32 images; more may be given, None takes one out."""
    images, cache = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("cache")
    write_images(images)
    keys = pretrain_keys(images, cache)
    return lambda output, **others: as_arguments(keys, output, **others)
