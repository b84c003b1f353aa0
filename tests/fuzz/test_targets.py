"""Every target of the fuzzer takes its seeds and some mutations of them; needs no atheris."""

import pytest

from data_prep.errors import InputError
from tests.fuzz import apis, archives, exports, mutate, table_files, written

TARGETS = [target for family in (apis, archives, exports, table_files, written) for target in family.TARGETS]


def test_names_differ():
    assert len({target.name for target in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_seeds_are_good_and_mutations_are_read_or_refused(target):
    for seed in target.seeds:
        if target.name != "prepared_array":  # one of its seeds is a piece
            target.run(seed)
        for number in range(15):
            changed = mutate.mutated(seed, target.form, number)
            assert changed == mutate.mutated(seed, target.form, number)
            try:
                target.run(changed)
            except InputError as error:
                assert str(error)


@pytest.mark.parametrize("form", ["json", "csv", "text", "bytes"])
def test_mutations_change_what_they_take(form):
    seed = b'{"a": [1, 2], "b": {"c": "text"}}\n1,2,3\n' if form != "json" else b'{"a": [1, 2], "b": {"c": "text"}}'
    assert sum(mutate.mutated(seed, form, number) != seed for number in range(100)) > 70
