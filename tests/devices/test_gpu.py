"""What `Gpu` asks of CuPy and of the driver, with stand-ins for both; kernels and their values are in test_kernels."""

from __future__ import annotations

import ctypes
import gc
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hetcomm.devices import arithmetic, gpu
from hetcomm.devices.driver import Driver
from hetcomm.devices.gates import Gates
from hetcomm.devices.gpu import Gpu
from hetcomm.devices.library import cupy_kind
from hetcomm.errors import DeviceError
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind

from . import fake_cupy

Opener = Callable[..., Any]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens a device on a fake CuPy, which becomes its attribute `fake`."""

    def make(kind: MemoryKind = MemoryKind.CUDA, **driver: Any) -> Any:
        cupy = fake_cupy.make(is_hip=kind is MemoryKind.ROCM)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        fake = fake_cupy.FakeDriver(cupy.cuda.runtime)
        for name, value in driver.items():
            setattr(fake, name, value)
        monkeypatch.setattr(gpu, "Driver", lambda *_: fake)
        device: Any = Gpu(kind)
        device.fake = cupy
        device.log = cupy.cuda.runtime.log
        return device

    return make


def on_device(count: int, dtype: DataType = DataType.FLOAT32, address: int = 0x1000) -> Memory:
    return Memory(address, count, dtype, MemoryKind.CUDA)


# ---- opening


def test_without_cupy_the_remedy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"need CuPy .*hetcomm\[cuda12\]"):
        Gpu(MemoryKind.CUDA)
    with pytest.raises(DeviceError, match=r"hetcomm\[rocm\]"):
        Gpu(MemoryKind.ROCM)
    assert cupy_kind() is None


def test_a_cupy_of_the_other_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.make(is_hip=True))
    with pytest.raises(DeviceError, match=r"cuda memory, but the installed CuPy is made for rocm.*Uninstall"):
        Gpu(MemoryKind.CUDA)
    assert cupy_kind() is MemoryKind.ROCM


@pytest.mark.parametrize("devices", [0, -1])
def test_no_device_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.make(devices=devices))
    with pytest.raises(DeviceError, match="finds no cuda device"):
        Gpu(MemoryKind.CUDA)
    assert cupy_kind() is None


def test_a_library_that_cupy_has_not_loaded_is_named() -> None:
    if "libamdhip64.so" in Path("/proc/self/maps").read_text():
        pytest.skip("this process has loaded ROCm")
    with pytest.raises(DeviceError, match=r"libamdhip64\.so\.7"):
        Driver(MemoryKind.ROCM, lambda status: None)


def test_what_it_says_about_itself(opened: Opener) -> None:
    device = opened()
    assert (device.kind, device.name, device.query) == (MemoryKind.CUDA, "Fake GPU (device 0)", 0xC0DE)
    assert device.versions() == {"cupy": "14.0", "driver": "13000", "runtime": "12090"}
    device.log.clear()
    device.use()
    assert device.log == [("use", 0), ("ignore captures",)]


def test_memory_belongs_to_the_device_that_has_it(opened: Opener) -> None:
    device = opened()
    device.fake.cuda.runtime.pointers = {1: (0, 2), 2: (0, 3), 3: (1, 2), 4: (0, 1), 5: (0, 0)}
    assert [device.owns(address) for address in (1, 2, 3, 4, 5, 6)] == [True, True, False, False, False, False]


# ---- streams


def test_the_stream_of_an_array_is_its_librarys(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened()
    torch: Any = types.ModuleType("torch")
    torch.Tensor = type("Tensor", (), {"device": "cuda:0", "__cuda_array_interface__": {"stream": 3}})
    torch.cuda = types.SimpleNamespace(
        current_stream=lambda where: types.SimpleNamespace(cuda_stream=0x70 + len(where))
    )
    device.fake.current = 0x42
    assert device.stream_of(fake_cupy.Array()) == 0x42
    assert device.stream_of(torch.Tensor()) == 3  # PyTorch is not imported: any array with the interface
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert device.stream_of(torch.Tensor()) == 0x76
    for given, expected in ((1, 1), (2, 2), (0x1234, 0x1234), (None, 0)):
        array = types.SimpleNamespace(__cuda_array_interface__={"stream": given})
        assert device.stream_of(array) == expected
    assert device.stream_of(types.SimpleNamespace(__cuda_array_interface__={})) == 0
    assert device.stream_of(object()) == 0


@pytest.mark.parametrize("stream", [0, 1, 2, 0x5000])
def test_every_handle_is_passed_on_as_it_is(opened: Opener, stream: int) -> None:
    device = opened()
    device.log.clear()
    event = device.record(stream)
    device.follow(stream, event)
    gate = device.gate()
    gate.hold(stream)
    device.reduce(on_device(3), on_device(3, address=0x2000), ReduceKind.SUM, stream)
    device.copy(on_device(3), on_device(3, address=0x2000), stream)
    device.synchronize(stream)
    assert device.log[0] == ("record", event.handle, stream)
    assert device.log[1] == ("follow", stream, event.handle)
    assert device.log[2][:2] == ("wait", stream)
    assert device.log[-3][0] == "launch"
    assert device.log[-3][-1] == stream
    assert device.log[-2] == ("copy", 0x2000, 0x1000, 12, 3, stream)
    assert device.log[-1] == ("synchronize", stream)


def test_a_stream_is_destroyed_when_it_is_idle(opened: Opener) -> None:
    device = opened()
    runtime = device.fake.cuda.runtime
    first, second = device.open_stream(), device.open_stream()
    runtime.status[first] = fake_cupy.BUSY
    device.close_stream(first)
    device.close_stream(second)
    assert [each for each in device.log if each[0] == "destroy"] == [("destroy", second)]
    del runtime.status[first]
    device.open_stream()
    assert device.log[-1] == ("destroy", first)


def test_capturing(opened: Opener) -> None:
    device = opened()
    runtime = device.fake.cuda.runtime
    for answer, expected in (
        (False, False),
        (True, True),
        (fake_cupy.CUDARuntimeError(906), True),
        (RuntimeError("the capture is invalid"), True),
    ):
        runtime.capture = answer
        assert device.capturing(7) is expected
    runtime.capture = fake_cupy.CUDARuntimeError(400)
    with pytest.raises(DeviceError, match="cudaError400"):
        device.capturing(7)


def test_events_come_fail_and_are_used_again(opened: Opener) -> None:
    device = opened()
    status = device.fake.cuda.runtime.status
    event = device.record(3)
    handle = event.handle
    status[handle] = fake_cupy.BUSY
    assert not event.done()
    status[handle] = 0
    assert event.done()
    status[handle] = 700  # an illegal address: it will never come
    with pytest.raises(DeviceError, match="Fake GPU.*cudaError700"):
        event.done()
    other = device.record(3)
    assert other.handle != handle
    del event
    gc.collect()
    assert device.record(3).handle == handle


# ---- gates


def test_a_gate_holds_until_its_word_has_the_value(opened: Opener) -> None:
    device = opened()
    gate = device.gate()
    gate.hold(5)
    gate.hold(6)
    (_, five, address, value, flush), (_, six, same, equal, _) = device.log[-2:]
    assert (five, six, same, equal, flush) == (5, 6, address, value, True)
    word = ctypes.c_uint32.from_address(address)
    assert (value - word.value) & 0xFFFFFFFF == 1
    gate.open()
    assert word.value == value
    gate.open()
    assert word.value == value


def test_words_are_used_again_only_after_their_gate_is_open_and_never_go_back() -> None:
    pages: list[Any] = []
    held: dict[tuple[int, int], None] = {}

    def page(nbytes: int) -> int:
        pages.append((ctypes.c_uint32 * (nbytes // 4))(*[0xFFFFFFFD] * (nbytes // 4)))
        return ctypes.addressof(pages[-1])

    gates = Gates(page, lambda stream, address, value: held.setdefault((address, value)))
    per_page = len(gates._free)
    closed = [gates.new() for _ in range(per_page)]
    assert len(pages) == 1
    extra = gates.new()  # all words of the first page are in use
    assert len(pages) == 2
    for gate in (*closed, extra):
        gate.hold(1)
    assert len({address for address, _ in held}) == per_page + 1
    old = dict(held)
    for _ in range(3):  # over the end of 32 bits
        for gate in (*closed, extra):
            gate.open()
        for address, value in old:
            assert (ctypes.c_uint32.from_address(address).value - value) & 0xFFFFFFFF < 1 << 31
        closed = [gates.new() for _ in range(per_page)]
        held.clear()
        for gate in closed:
            gate.hold(1)
        for address, value in held:
            assert (ctypes.c_uint32.from_address(address).value - value) & 0xFFFFFFFF >= 1 << 31
    assert len(pages) == 2


def test_streams_that_cannot_wait_run_a_kernel_that_does(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert opened().stream_waits
    assert caplog.messages[-1].endswith("streams wait for messages by themselves")
    for device in (opened(refuses=801), opened(can_wait=False), opened(MemoryKind.ROCM, can_wait=False)):
        assert not device.stream_waits
        assert caplog.messages[-1].endswith("streams wait for messages in a kernel")
        assert device.log[-2][:2] == ("launch", arithmetic.HOLD_NAME)  # once, on an open word
        assert device.log[-1] == ("synchronize", 0x99)
        gate = device.gate()
        gate.hold(5)
        kind, name, grid, block, (address, value), stream = device.log[-1]
        assert (kind, name, grid, block, stream) == ("launch", arithmetic.HOLD_NAME, (1,), (1,), 5)
        assert ctypes.c_uint32.from_address(address).value != value
        gate.open()
        assert ctypes.c_uint32.from_address(address).value == value
    with pytest.raises(DeviceError, match="CUDA_ERROR_1"):
        opened(refuses=1)


def test_host_memory_of_gates_is_mapped_and_on_rocm_coherent(opened: Opener) -> None:
    for kind, flags in ((MemoryKind.CUDA, 3), (MemoryKind.ROCM, 0x40000003)):
        pinned = [each for each in opened(kind, can_wait=False).log if each[0] == "pinned"]
        assert pinned == [("pinned", 1 << 16, flags)]


# ---- memory and kernels


def test_memory_comes_from_cupys_pool(opened: Opener) -> None:
    device = opened()
    found = device.allocate(0)
    assert (found.address, found.count, found.dtype, found.kind) == (0x7000, 0, DataType.UINT8, MemoryKind.CUDA)
    assert found.owner.nbytes == 1
    device.fake.fails = MemoryError("out of memory")
    with pytest.raises(DeviceError, match=r"out of memory.*free_all_blocks"):
        device.allocate(1 << 50)


def test_prepared_kernels_are_compiled_once_and_launched_on_nothing(opened: Opener) -> None:
    device = opened()
    device.prepare(DataType.FLOAT32, None)
    assert device.fake.compiled == []
    device.log.clear()
    device.prepare(DataType.FLOAT32, ReduceKind.AVG)
    ((_, options),) = device.fake.compiled
    assert {"--fmad=false", "--ftz=false"} < set(options)
    names = [f"hetcomm_float32_{what}" for what in ("fill", "sum", "average")]
    assert [each[1] for each in device.log[:-1]] == names
    assert all(each[4][:3] == (0, 0, 0) and each[5] == 0x99 for each in device.log[:-1])
    assert device.log[-1] == ("synchronize", 0x99)
    device.prepare(DataType.FLOAT32, ReduceKind.SUM)
    assert len(device.fake.compiled) == 1
    device.prepare(DataType.FLOAT32, ReduceKind.PREMUL_SUM)
    source, _ = device.fake.compiled[1]
    assert "HETCOMM_SCALED(float32, multiply, float)" in source
    assert "HETCOMM_REDUCED(float32" not in source
    device.fake.fails = fake_cupy.CompileException("nvrtc: error: no")
    with pytest.raises(DeviceError, match=r"nvrtc: error.*\[ctk\]"):
        device.prepare(DataType.INT8, ReduceKind.SUM)


def test_kernels_get_addresses_counts_and_scalars(opened: Opener) -> None:
    device = opened()

    def launched() -> tuple[Any, ...]:
        kind, name, grid, block, arguments, stream = device.log[-1]
        assert (kind, block, stream) == ("launch", (256,), 4)
        return (name, grid, *arguments)

    src, dst = on_device(5000, DataType.FLOAT16), on_device(5000, DataType.FLOAT16, 0x8000)
    device.reduce(src, dst, ReduceKind.MAX, 4)
    assert launched() == ("hetcomm_float16_max", (3,), 0x8000, 0x1000, 5000)
    device.average(src, dst, 3, 4)
    *rest, scalar = launched()
    assert rest == ["hetcomm_float16_average", (3,), 0x8000, 0x1000, 5000]
    assert (scalar.dtype, scalar.tolist()) == ("float32", [3.0])
    device.fill(dst, ReduceKind.MIN, 4)
    *rest, scalar = launched()
    assert rest == ["hetcomm_float16_fill", (3,), 0x8000, 0x8000, 5000]
    assert scalar.tolist() == [float("inf")]
    device.multiply(on_device(1 << 40, DataType.INT8), on_device(1 << 40, DataType.INT8, 0x9000), -1, 4)
    *rest, scalar = launched()
    assert rest == ["hetcomm_int8_multiply", (16,), 0x9000, 0x1000, 1 << 40]
    assert (scalar.size, scalar.tobytes()) == (1, b"\xff")


def test_nothing_is_queued_for_nothing(opened: Opener) -> None:
    device = opened()
    device.prepare(DataType.FLOAT32, ReduceKind.SUM)
    device.log.clear()
    device.reduce(on_device(0), on_device(0), ReduceKind.SUM, 1)
    device.fill(on_device(0), ReduceKind.SUM, 1)
    device.copy(on_device(0), on_device(0, address=8), 1)
    device.copy(on_device(4), on_device(4), 1)
    assert device.log == []


def test_an_array_within_an_element_is_refused_before_it_can_break_the_device(opened: Opener) -> None:
    device = opened()
    with pytest.raises(DeviceError, match="begins within an element"):
        device.reduce(on_device(4, address=0x1002), on_device(4), ReduceKind.SUM, 1)
    device.reduce(on_device(4, DataType.COMPLEX128, 0x1008), on_device(4, DataType.COMPLEX128), ReduceKind.SUM, 1)


def test_the_doctor_shows_the_device(opened: Opener) -> None:
    from hetcomm._cli import doctor

    opened()
    transport = doctor.Finding("UCX", "memory it can move", "ok", "", values={"host": True, "cuda": False})
    found = {finding.name: finding for finding in doctor._device([transport])}
    assert found["current"].detail == "Fake GPU (device 0); driver 13000, runtime 12090, CuPy 14.0"
    assert found["stream memory operations"].detail == "yes"
    assert found["UCX reaches its memory"].status == "missing"
    assert "HETCOMM_UCX_HOME" in found["UCX reaches its memory"].remedy
    transport.values["cuda"] = True
    assert [finding.status for finding in doctor._device([transport])] == ["ok"] * 3


def test_the_doctor_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from hetcomm._cli import doctor

    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.make(devices=-1))
    (finding,) = doctor._device([])
    assert (finding.name, finding.status) == ("none", "ok")
