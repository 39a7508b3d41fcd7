"""The device path on a GPU: the bits of NumPy, what memory that runs out and a broken kernel end with, training.

`make test-gpu` runs this and all of tests/unit/device with real streams.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import checks
from paramserver.wire.codecs import Codec
from paramserver.wire.spec import Sgd
from tests.unit.device.helpers import SPIN, SPIN_CYCLES
from tests.unit.worker import fake
from tests.unit.worker.fake import FakeCluster, FakeNetwork
from tests.unit.worker.helpers import BLOCKS, applied_once, client_of, gradients, model_of
from worker import device as devices
from worker import errors
from worker.client import connect
from worker.device.link import Link
from worker.reference import train as loop
from worker.reference.config import TrainConfig
from worker.reference.train import train

ROOT = Path(__file__).parents[3]
STEPS = 200


def test_every_bit_is_that_of_numpy() -> None:
    assert [row["check"] for row in checks.all_of(devices.get("cupy")) if not row["equal"]] == []


def test_host_memory_is_page_locked_and_copies_do_not_wait_for_the_null_stream() -> None:
    import cupy

    device = devices.get("cupy")
    backend: Any = device.backend()
    pinned = backend.pinned(1 << 20, np.float32)
    attributes = cupy.cuda.runtime.pointerGetAttributes(pinned.ctypes.data)
    assert attributes.type == 1  # cudaMemoryTypeHost
    # A kernel on the null stream that takes a millisecond is not waited for: both streams are non-blocking.
    spin = cupy.RawKernel(SPIN, "spin")
    spin((1,), (1,), (np.int64(1),))
    cupy.cuda.Device().synchronize()
    spin((1,), (1,), (np.int64(400 * SPIN_CYCLES),))
    backend.download(backend.zeros(1 << 20, np.float32), pinned, 0, 1 << 20)
    backend.wait()
    assert not cupy.cuda.Stream.null.done


def test_memory_that_runs_out_is_an_error_after_which_the_same_step_is_computed() -> None:
    """FAULTS 32, with CuPy's own limit."""
    import cupy

    cluster = FakeCluster()
    device = devices.get("cupy")
    with client_of(cluster) as client:
        model = model_of(client, codec="bf16")
        link = Link(model, device)
        link.pull()
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        pool.set_limit(size=pool.total_bytes() + (1 << 20))
        try:
            with pytest.raises(errors.DeviceOutOfMemory) as refused:
                with device.guarded("computing a gradient"):
                    cupy.zeros(64 << 20, np.uint8)
            assert refused.value.retryable
        finally:
            pool.set_limit(size=0)
        link.discard()
        assert len(cluster.frames) == BLOCKS
        on_device = {name: device.from_host(array) for name, array in gradients(0).items()}
        link.push_pull(on_device, step=0).result()
    assert applied_once(cluster, 1)


BROKEN = """
import cupy, numpy as np
from tests.unit.device.helpers import SPIN, SPIN_CYCLES
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import BLOCKS, SHAPES, client_of, gradients, model_of
from worker import device as devices, errors
from worker.device.link import Link

device, cluster = devices.get("cupy"), FakeCluster()
with client_of(cluster) as client:
    model = model_of(client)
    link = Link(model, device)
    link.pull()
    on_device = {name: device.from_host(array) for name, array in gradients(0).items()}
    wild = cupy.RawKernel('extern "C" __global__ void wild(float *p) { p[1ull << 50] = 1; }', "wild")
    wild((1,), (1,), (on_device["a"],))
    try:
        link.push_pull(on_device)
    except errors.DeviceFailed as error:
        assert not isinstance(error, errors.DeviceOutOfMemory), error
        assert (len(cluster.frames), model.step) == (BLOCKS, 0)
        print("DeviceFailed:", error, flush=True)
import os
os._exit(0)  # CUDA's own end is not to be waited for
"""


def test_a_kernel_that_goes_wild_sends_no_part_of_the_step() -> None:
    """FAULTS 32. In a process of its own, for the device is lost to it."""
    ran = subprocess.run([sys.executable, "-c", BROKEN], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stderr
    assert "DeviceFailed: " in ran.stdout, ran.stderr


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
def test_the_cnn_learns_on_the_device(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()

    def on_fake(servers: str, **options: Any) -> Any:
        network: Any = functools.partial(FakeNetwork, cluster)
        return connect(list(cluster.addresses.values()), network=network, **options)

    monkeypatch.setattr(fake, "LEARNING_RATE", np.float32(0.1))  # of what the fake cluster applies, whatever is asked
    monkeypatch.setattr(loop, "connect", on_fake)
    monkeypatch.setattr(loop, "keep_memory", lambda: "")
    config = TrainConfig(
        servers="127.0.0.1:1",
        session_file=tmp_path / "session",
        device="cupy",
        network="cnn",
        precision=precision,
        codec=Codec.BF16,
        optimizer=Sgd(0.1),
        steps=STEPS,
    )
    assert train(config).accuracy > 0.8
