"""How devices are laid out, and which parts of arrays they have."""

from types import SimpleNamespace

import numpy as np
import pytest

from onedc_jax import sharding


@pytest.mark.parametrize(
    "hosts, of_a_host, shape", [(8, 4, (8, 4)), (8, 4, (16, 2)), (8, 4, (4, 8)), (1, 8, (2, 4))]
)
def test_devices_of_a_process_are_side_by_side_whatever_their_order(hosts, of_a_host, shape):
    device = lambda i: SimpleNamespace(
        id=i, process_index=i % hosts, platform="none", device_kind="none"
    )
    laid_out = sharding._laid_out([device(i) for i in range(hosts * of_a_host)], *shape)
    assert laid_out.shape == shape
    processes = np.vectorize(lambda device: device.process_index)(laid_out)
    side_by_side = np.repeat(np.arange(hosts), of_a_host).reshape(shape)
    np.testing.assert_array_equal(processes, side_by_side)
