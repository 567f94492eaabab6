"""Threads that wait for messages wait for their turn; all others are left alone."""

import _thread
import os
import select
import threading
import time

import pytest

from jtssm.sharding import receiving

pytestmark = pytest.mark.skipif(not receiving._THREADS.exists(), reason="threads as Linux has them")


@pytest.fixture
def waiting():
    """(as gloo's, one of Python's own): threads that sleep until something is to be read."""
    reading, writing = os.pipe()
    found: list[int] = []

    def wait() -> None:
        with select.epoll() as ready:
            ready.register(reading, select.EPOLLIN)
            found.append(threading.get_native_id())
            ready.poll()

    _thread.start_new_thread(wait, ())  # Python does not count it among its threads
    while not found:
        time.sleep(0.01)
    own = threading.Thread(target=wait)
    own.start()
    end = time.monotonic() + 5
    while not (told := len(found) == 2 and all(map(_sleeps, found))) and time.monotonic() < end:
        time.sleep(0.01)
    if told:
        yield found
    os.write(writing, b" ")
    own.join()
    os.close(writing)
    if not told:
        pytest.skip("the kernel does not tell what a thread waits for")


def _sleeps(thread: int) -> bool:
    return "poll" in (receiving._THREADS / str(thread) / "wchan").read_text()


def test_only_what_waits_for_messages_waits_for_its_turn(waiting):
    like_gloos, pythons = waiting
    assert like_gloos in receiving._waiting()
    receiving.let_compute_first()
    policies = [os.sched_getscheduler(thread) for thread in (like_gloos, pythons, os.getpid())]
    assert policies == [os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_OTHER]


def test_a_thread_that_may_not_be_changed_is_left_as_it_is(waiting, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    receiving.let_compute_first()
    assert os.sched_getscheduler(waiting[0]) == os.SCHED_OTHER


def test_nothing_is_done_where_threads_are_not_to_be_seen(waiting, monkeypatch, tmp_path):
    monkeypatch.setattr(receiving, "_THREADS", tmp_path / "none")
    receiving.let_compute_first()
    assert os.sched_getscheduler(waiting[0]) == os.SCHED_OTHER
