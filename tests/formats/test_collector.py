"""The pause of the garbage collector ends, however it is left and however many are in it."""

from __future__ import annotations

import gc

import pytest

from holdfast.formats.collector import collector_paused


def test_the_collector_rests_until_the_last_pause_ends() -> None:
    assert gc.isenabled()
    with collector_paused:
        with collector_paused:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_the_pause() -> None:
    with pytest.raises(KeyError), collector_paused:
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused:
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
