#!/bin/bash
# On a machine with an NVIDIA GPU that can fetch nothing: install hetcomm's needs from wheels, build it, run tests/gpu,
# measure, and write reports and pictures.
#
#   benchmarks/gpu/run.sh WHEELS OUT
#
# WHEELS is a folder that benchmarks/gpu/wheels.sh has filled; OUT gets what is meant for benchmarks/results/gpu. The
# machine's python3 must have CuPy, PyTorch, NumPy, ml_dtypes, pytest with xdist, hypothesis and matplotlib. Everything
# is over HETCOMM_GPU_SECONDS seconds (570) after the start. Nothing is installed outside of a temporary folder, which
# is removed, and the GPU's settings are left alone. The exit status is 0 only if all was measured and holds.
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: $0 WHEELS OUT" >&2; exit 2; }
limit=${HETCOMM_GPU_SECONDS:-570}
wheels=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
tree=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
exec > >(tee "$out/run.log") 2>&1

say() { printf '== %4d s  %s\n' "$SECONDS" "$*"; }

say "a Python environment on top of $(python3 --version)"
python3 -m venv --without-pip "$work/env"
python=$work/env/bin/python
# Whatever the machine's Python finds, after what is installed here; and where CuPy looks for CUDA's libraries.
python3 - >"$("$python" -c 'import site; print(site.getsitepackages()[0])')/machine.pth" <<'EOF'
import sys
print(f"import site; site.PREFIXES.append({sys.prefix!r})")
for path in sys.path:
    if path.endswith(("site-packages", "dist-packages")):
        print(f"import site; site.addsitedir({path!r})")
EOF
timeout 60 python3 -m pip --python "$python" install --quiet --no-index --no-deps --no-compile \
    --disable-pip-version-check --root-user-action ignore "$wheels"/*.whl

say "building"
# In a copy, since a build leaves its own files behind. Its folders become packages, because an installed package of
# the same name would hide a folder that is none.
mkdir "$work/tree"
for each in hetcomm tests benchmarks examples setup.py pyproject.toml README.md LICENSE; do
    cp -r "$tree/$each" "$work/tree/"
done
touch "$work/tree/tests/__init__.py" "$work/tree/benchmarks/__init__.py"
cd "$work/tree"
export PYTHONPATH=$work/tree PYTHONUNBUFFERED=1 PATH=$work/env/bin:$PATH
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
timeout 150 "$python" setup.py --quiet build_ext --inplace

export CUPY_CACHE_DIR=$work/kernels TMPDIR=$work
# UCX loads the driver's libraries by name; where they lie outside of the loader's path, name their folder.
folder=$("$python" - <<'EOF'
import ctypes, os, sys
for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
    try:
        ctypes.CDLL(name)
    except OSError as error:
        sys.exit(f"no NVIDIA driver: {error}")
with open("/proc/self/maps") as maps:
    paths = {line.split()[-1] for line in maps if "/libnvidia-ml.so" in line or "/libcuda.so" in line}
print(":".join(sorted({os.path.dirname(path) for path in paths})))
EOF
)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder

say "what hetcomm finds"
timeout 60 "$python" -c 'from hetcomm.cli import main; main()' doctor || say "the doctor found a problem (status $?)"

say "tests and measurements"
status=0
"$python" -m benchmarks.gpu.suite "$out" --seconds $((limit - SECONDS)) || status=$?
say "done, status $status"
exit $status
