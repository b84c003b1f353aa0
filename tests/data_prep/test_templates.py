import random

import polars as pl
import pytest

from data_prep import templates

BODIES = [
    "GET /servers/0e2d9b3a-11aa-4bcd-8f3a-aabbccddeeff from 10.0.0.7:443 took 0.123",
    "GET /servers/ffffffff-11aa-4bcd-8f3a-aabbccddee00 from 10.0.0.9:443 took 17",
    "disk full",
    "order Order{id=4, route={a=1, b=[1, 2]}} saved",
    "order Order{id=5} saved",
    "Controller#31 enter",
    "Controller#95 enter",
    "票 was refused",
]


def masked(bodies):
    return pl.DataFrame({"body": bodies}, schema={"body": pl.String}).select(templates.mask(pl.col("body")))["body"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (BODIES[0], "GET /servers/<id> from <ip> took <num>"),
        ("  first line\nat Stack.trace(Frame.java:17)", "first line"),
        (BODIES[3], "order Order<data> saved"),
        ("left (a=1) and {b: {c: 2}} and 'x y' at 0x1F", "left <data> and <data> and <text> at <num>"),
        ("at 2023-01-29T08:42:22.5Z", "at <time>"),
        ("req-0e2d9b3a11aa4bcd8f3aaabbccddeeff done", "<id> done"),
        ("Controller#31 enter", "Controller#L31 enter"),
        ("cut off (a=1, b=[", "cut off <data>"),
        ("票 12", "票 <num>"),
        ("", ""),
    ],
)
def test_masks(body, expected):
    assert masked([body]).to_list() == [expected]


def test_long_bodies_are_looked_at_up_to_a_limit():
    assert len(masked(["word " * 1000])[0]) <= templates.MAX_BODY


def test_templates_do_not_depend_on_order_or_repeats():
    values = masked(BODIES).to_list()
    fitted = templates.Templates(values)
    for seed in range(3):
        shuffled = values * 2
        random.Random(seed).shuffle(shuffled)
        again = templates.Templates(shuffled)
        assert again.texts == fitted.texts


def test_assignment():
    values = masked(BODIES)
    fitted = templates.Templates(values.to_list())
    numbers = fitted.assign(values)
    assert numbers.dtype == pl.Int32
    assert numbers[0] == numbers[1] and numbers[3] == numbers[4]
    assert len({numbers[i] for i in (0, 2, 3, 5, 6, 7)}) == 6  # lines of code stay apart
    assert fitted.texts[numbers[2]] == "disk full"


def test_unseen_empty_and_null_bodies_have_no_template():
    fitted = templates.Templates(["disk full", ""])
    assert fitted.texts == ["disk full"]
    values = pl.Series(["another thing happened", "", None, "disk full"])
    assert fitted.assign(values).to_list() == [templates.UNSEEN] * 3 + [0]


def test_no_bodies_at_all():
    fitted = templates.Templates([])
    assert fitted.texts == []
    assert fitted.assign(pl.Series(["a"])).to_list() == [templates.UNSEEN]
    assert fitted.assign(pl.Series([], dtype=pl.String)).to_list() == []
