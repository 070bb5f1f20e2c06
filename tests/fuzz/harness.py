"""Feed mutated bytes to one of the readers of what comes from outside, for as long as libFuzzer is told.

    python tests/fuzz/harness.py frame -max_total_time=60

A reader returns a value or raises a `HetcommError`; anything else, and memory beyond libFuzzer's limit, is a finding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hetcomm", "json", "tomllib"]):
    from hetcomm.agreement.control import Frame, Subject
    from hetcomm.errors import HetcommError
    from hetcomm.job.bootstrap import _pack, _unpack
    from hetcomm.job.detect import Statement, _failure
    from hetcomm.schedule import serial
    from hetcomm.topology.model import Topology

READERS: dict[str, Callable[[bytes], object]] = {
    "frame": lambda data: Frame.unpack(data.ljust(1024, b"\0")[:1024], 300),
    "payloads": _unpack,
    "statement": Statement.unpack,
    "failure": _failure,
    "topology": lambda data: Topology.from_toml(data.decode(errors="replace")),
    "schedule": serial.loads,
}

SEEDS: dict[str, bytes] = {
    "frame": bytes(Frame(Subject.GONE, 1, 2, text="gone", ranks=frozenset({1, 2, 5}), origin=0).pack())[:80],
    "payloads": _pack([b"one", b"", b"another"]),
    "statement": Statement("mpi", "left", "host:12345678", b"\1\2", "abc").pack(),
    "failure": b'-{"type": "VendorError", "message": "no", "remedy": null}',
    "topology": b"[[cluster]]\nvendor='a'\nranks='0-1, 3'\n[[cluster.uplink]]\nrank=0\nbandwidth='10 Gbit/s'\n",
    "schedule": b'{"format": "hetcomm.schedule", "version": 2, "collective": {"kind": "broadcast", "nranks": 2,'
    b'"count": 8, "dtype": "float32", "op": null, "root": 0, "in_place": false, "counts": null, "in_displs": null,'
    b'"out_displs": null}, "communicators": {"home:left": [0, 1]}, "programs": []}',
}


def main(name: str, *options: str) -> None:
    """Fuzz the reader called so; or, with 'seed' and a path, write something it can read there."""
    if options[:1] == ("seed",):
        Path(options[1]).write_bytes(SEEDS[name])
        return
    read = READERS[name]

    def once(data: bytes) -> None:
        with suppress(HetcommError):
            read(data)

    once(SEEDS[name])
    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
