"""Calls in the writer thread happen later, and otherwise as if made at once."""

import threading

import pytest

from mpvss.outputs.writer_thread import WriterThread


def test_calls_are_made_in_order_and_are_done_when_the_block_ends():
    done = []
    with WriterThread(2) as writer:
        for number in range(50):
            writer.call(done.append, number)
    assert done == list(range(50))


def test_calls_are_made_in_another_thread():
    where = []
    with WriterThread(2) as writer:
        writer.call(lambda: where.append(threading.current_thread()))
    assert where != [threading.current_thread()]


def test_the_first_error_ends_it_and_reaches_the_caller():
    done = []

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriterThread(2) as writer:
        writer.call(done.append, 1)
        writer.call(fail)
        while True:  # blocks or raises, but does not go on for ever
            writer.call(done.append, 2)
    assert done == [1]

    with pytest.raises(OSError, match="disk full"), WriterThread(5) as writer:
        writer.call(fail)


def test_an_error_of_the_caller_is_not_hidden_and_what_waits_is_left():
    release, done = threading.Event(), []
    before = threading.active_count()
    with pytest.raises(KeyError), WriterThread(5) as writer:
        writer.call(release.wait)
        writer.call(done.append, 1)
        threading.Timer(0.2, release.set).start()
        raise KeyError
    assert done == []
    assert threading.active_count() <= before + 1  # the timer may still be there
