from collections.abc import Iterator

import pytest

from service.cli.replay.player import Api
from service.cli.replay.run import serving


@pytest.fixture(scope="session")
def api() -> Iterator[Api]:
    """A connection to a real service in a process of its own."""
    with serving("") as connection:
        yield connection
