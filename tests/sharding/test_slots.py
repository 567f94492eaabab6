"""Which device holds which pieces: the empty slots come first."""

import pytest

from jtssm.sharding.slots import Slots


@pytest.mark.parametrize(
    ("num", "held"),
    [
        (9, [range(4), range(4, 9)]),
        (5, [range(0), range(1), range(1, 3), range(3, 5)]),
        (3, [range(1), range(1, 3)]),
        (9, [range(0), range(0), range(1), range(1, 3), range(3, 5), range(5, 7), range(7, 9)]),
        (4, [range(2), range(2, 4)]),
        (3, [range(3)]),
    ],
)
def test_the_last_devices_hold_most_pieces(num, held):
    slots = Slots(num, len(held))
    assert [slots.pieces(device) for device in range(len(held))] == held
    assert list(slots.used) == [device for device, pieces in enumerate(held) if pieces]


@pytest.mark.parametrize("devices", range(1, 10))
@pytest.mark.parametrize("num", range(1, 10))
def test_all_that_is_said_of_a_piece_agrees(num, devices):
    if devices > num:
        return
    slots = Slots(num, devices)
    assert slots.total == slots.empty + num == slots.local * devices
    in_order = [slots.piece(row) for row in range(slots.total)]
    assert in_order == [None] * slots.empty + list(range(num))
    for l in range(num):
        device, slot = slots.device(l), slots.slot(l)
        assert slots.number(device, slot) == slots.row(l)
        assert l in slots.pieces(device)
        assert l in slots.at_slot(slot)
    assert sorted(l for d in range(devices) for l in slots.pieces(d)) == list(range(num))
    assert sorted(l for s in range(slots.local) for l in slots.at_slot(s)) == list(range(num))
    cut = [l for l in range(num - 1) if slots.device(l) != slots.device(l + 1)]
    assert [b for d in range(devices) if (b := slots.boundary(d)) is not None] == cut
    # what crosses a boundary goes from a device's last slot to the first one of the next
    assert all((slots.slot(l), slots.slot(l + 1)) == (slots.local - 1, 0) for l in cut)
