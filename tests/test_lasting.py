import gc
import weakref
from collections.abc import Iterator

import pytest

from server.lasting import lasting


class Thing:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_made_is_not_gone_through_and_what_comes_later_is() -> None:
    before = gc.get_freeze_count()
    with lasting():
        assert not gc.isenabled()
        kept = [Thing() for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)
    lasts, goes = weakref.ref(kept.pop()), weakref.ref(Thing())
    gc.collect()
    assert lasts() is not None
    assert goes() is None


def test_the_collector_goes_on_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), lasting():
        _ = 1 / 0
    assert gc.isenabled()
