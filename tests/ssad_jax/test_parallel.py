"""Raw gradients: after AdamW and clipping a gradient that is a multiple of the right one would look right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data_prep.errors import InputError
from ssad_jax import batching, methods, parallel, train
from tests.ssad_jax import toy
from tests.synthetic import make_prepared

STREAM = np.array([7, 2], np.uint32)  # seed and number of the network
INDEX = np.array([3, 0, 11, 5, 2, 9, -1, -1], np.int32)  # the last device of four has padded rows alone


def real_method(prepared, name="knowledge_ssl"):
    config = toy.small_config()
    config.method = name
    return methods.get(name).create(config, prepared.system, None)


@pytest.fixture(scope="module")
def prepared():
    data = make_prepared()
    uneven = data.fit_sequences.copy()
    uneven[3, 2:], uneven[5, 1:], uneven[9, 3:] = -1, -1, -1
    return dataclasses.replace(data, fit_sequences=uneven)


@pytest.fixture(scope="module", params=["toy", "knowledge_ssl", "cross_service"])
def method(request, prepared):
    return toy.METHOD if request.param == "toy" else real_method(prepared, request.param)


def dataset_of(prepared, needs):
    [chunk] = batching.plan_chunks(prepared, 8, 1000, needs)
    return batching.load_chunk(prepared, chunk, needs)


def reference(method, params, dataset, index):
    """Gradients and terms of the whole batch on one device, without any collective."""

    dataset = jax.tree.map(jnp.asarray, dataset)

    def objective(params):
        batch = batching.make_batch(dataset["windows"], dataset["sequences"][np.maximum(index, 0)], index)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 2), 0)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        sums, counts, _ = method.loss(params, batch, keys, lambda x: x)
        return sum(s / jnp.maximum(counts[k], 1) for k, s in sums.items()), (sums, counts)

    (_, terms), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    return gradients, terms


def mapped(method, params, dataset, index, mapping, devices):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    gradient = train.make_gradient(method.loss)

    def epoch(state, dataset, order):
        return gradient(state["params"], jnp.asarray(STREAM), state["step"], dataset, order[0, 0])

    state = parallel.replicate({"params": params, "step": np.int32(0)}, mesh)
    run = parallel.MappedEpoch(epoch, mesh, mapping)
    return parallel.fetch(run(state, parallel.replicate(dataset, mesh), index[None, None]))


def test_gradients_match_a_reference_without_collectives(prepared, method):
    params = jax.device_get(method.init(jax.random.key(1)))
    dataset = dataset_of(prepared, method.needs)
    expected, (sums, counts) = reference(method, params, dataset, INDEX)
    ways = [("pmap", 4), ("shard_map", 4)] + [("pmap", 1)] * (method is toy.METHOD)  # the others take long to compile
    found = {way: mapped(method, params, dataset, INDEX, *way) for way in ways}
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    assert scale > 1e-3  # the comparison below says something
    for gradients, terms in found.values():
        jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=0, atol=1e-6 * scale), gradients, expected)
        for name in sums:
            total, count = terms[f"loss/{name}"]
            np.testing.assert_allclose(total, sums[name], rtol=2e-6)
            assert count == counts[name] > 0
    jax.tree.map(np.testing.assert_array_equal, found["pmap", 4], found["shard_map", 4])


def test_padded_rows_change_nothing(prepared):
    params = jax.device_get(toy.init(jax.random.key(1)))
    dataset = dataset_of(prepared, toy.METHOD.needs)
    longer = np.append(INDEX, np.full(4, -1, np.int32))
    with_padding, _ = mapped(toy.METHOD, params, dataset, longer, "pmap", 4)
    without, _ = reference(toy.METHOD, params, dataset, INDEX[:6])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), with_padding, without)


def test_state_is_donated_and_stays_replicated():
    mesh = parallel.make_mesh()
    for mapping in ("pmap", "shard_map"):
        run = parallel.MappedEpoch(
            lambda state, dataset, order: (state + parallel.sum_devices(order.sum() * dataset), dataset * 2),
            mesh, mapping,
        )  # fmt: skip
        state = parallel.replicate(np.float32(1), mesh)
        dataset = parallel.replicate(np.float32(2), mesh)
        after, _ = run(state, dataset, np.arange(8, dtype=np.int32).reshape(2, 1, 4))
        assert state.is_deleted() and not dataset.is_deleted()
        assert after.sharding.is_fully_replicated and after.sharding.spec == P()
        assert [float(s.data) for s in after.addressable_shards] == [57.0] * 4


def test_unknown_mapping_and_uneven_batches_are_refused():
    mesh = parallel.make_mesh()
    with pytest.raises(InputError, match="use pmap or shard_map"):
        parallel.MappedEpoch(lambda *a: a, mesh, "xmap")
    with pytest.raises(InputError, match="batch_size=30 must be a positive multiple of the 4 devices; try 32"):
        parallel.check_batch_size(30, mesh)


def test_launch_variables_come_together():
    with pytest.raises(InputError, match="SSAD_NUM_PROCESSES, SSAD_PROCESS_ID is not"):
        parallel.initialize_processes({"SSAD_COORDINATOR": "localhost:1234"})
    with pytest.raises(InputError, match="whole numbers"):
        parallel.initialize_processes(
            {"SSAD_COORDINATOR": "localhost:1234", "SSAD_NUM_PROCESSES": "two", "SSAD_PROCESS_ID": "0"}
        )
