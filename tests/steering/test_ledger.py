from copy import copy
from dataclasses import asdict
from threading import Thread

from hf_alignbeam.steering.ledger import Ledger


def test_amounts_are_added_by_name():
    ledger = Ledger()
    ledger.add(anchor_forwards=2, lost_mass=0.25)
    ledger.add(anchor_forwards=1, lost_mass=0.5, judged=4)
    assert ledger == Ledger(anchor_forwards=3, lost_mass=0.75, judged=4)


def test_a_copy_is_a_record_of_its_own():
    ledger = Ledger(judged=1)
    before = copy(ledger)
    ledger.add(judged=2)
    assert (asdict(before)["judged"], asdict(ledger)["judged"]) == (1, 3)


def test_threads_lose_no_amount():
    ledger = Ledger()
    threads = [Thread(target=lambda: [ledger.add(anchor_tokens=1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.anchor_tokens == 8000
