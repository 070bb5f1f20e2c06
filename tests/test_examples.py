"""The example programs on real processes and real vendors; each checks itself and returns 0 if it went right."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetcomm.testing import RanksFailed, run_ranks, this_rank

from .scripts import DEADLINE, run

EXAMPLES = Path(__file__).parent.parent / "examples"

# Arrays that, as CuPy's, are not to be mixed with NumPy's: a stand-in for CuPy where there is no GPU.
STANDIN = """
import numpy
from numpy import float64, int64

class ndarray(numpy.ndarray):
    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        used = (*inputs, *out)
        assert all(isinstance(each, (ndarray, int, float)) for each in used), [type(each) for each in used]
        plain = [each.view(numpy.ndarray) if isinstance(each, ndarray) else each for each in inputs]
        if out:
            kwargs["out"] = tuple(each.view(numpy.ndarray) for each in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        return out[0] if out else asarray(result)

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"{function} of NumPy was given an array of the stand-in")

    def __setitem__(self, key, value):
        assert isinstance(value, (ndarray, int, float)), type(value)
        super().__setitem__(key, asarray(value).view(numpy.ndarray))

def asarray(values):
    return numpy.asarray(values).view(ndarray)

def asnumpy(array):
    assert type(array) is ndarray
    return array.view(numpy.ndarray).copy()

def is_available():
    return True

def arange(*args):
    return asarray(numpy.arange(*args))

def empty(*args):
    return asarray(numpy.empty(*args))

def zeros(*args):
    return asarray(numpy.zeros(*args))

def empty_like(array):
    return asarray(numpy.empty(array.shape, array.dtype))

def ascontiguousarray(array):
    return asarray(numpy.ascontiguousarray(array.view(numpy.ndarray)))

def where(condition, yes, no):
    return asarray(numpy.where(*(asarray(each).view(numpy.ndarray) for each in (condition, yes, no))))

def exp(array):
    return numpy.exp(array)
"""
STANDIN_SPARSE = """
import cupy

class csr_matrix:
    def __init__(self, matrix):
        self.matrix = matrix

    def __matmul__(self, x):
        return cupy.asarray(self.matrix @ cupy.asnumpy(x))
"""


def program(name: str) -> Callable[..., int]:
    main: Callable[..., int] = runpy.run_path(str(EXAMPLES / name), run_name=name)["main"]
    return main


def digits() -> int:
    return program("digits.py")()


def run_both(calls: list[tuple[str, list[str]]], standin: str, standin_ranks: list[int]) -> list[int]:
    """Run programs, one after the other; with the stand-in for CuPy on some ranks."""
    if this_rank().rank in standin_ranks:
        sys.path.insert(0, standin)
    return [program(name)(arguments) for name, arguments in calls]


def count(picture: Any, colour: str) -> int:
    """How many points of a picture have exactly that colour."""
    wanted = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)
    return int((np.rint(picture[:, :, :3] * 255) == wanted).all(axis=2).sum())


def check_picture(path: Path, size: tuple[int, int], name: str, nclusters: int) -> None:
    """It is there, shows a field in many colours, and has the colours of the clusters."""
    from matplotlib.image import imread  # here, since every rank imports this file

    picture = imread(path)
    assert picture.shape[1::-1] == size
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 250
    colours = program(name).__globals__["COLOURS"]
    shown = [count(picture, colour) > 100 for colour in colours]
    assert shown == [True] * nclusters + [False] * (len(colours) - nclusters)


@pytest.mark.parametrize(
    "vendors",
    [
        pytest.param(["mpi"] * 2 + ["oneccl"] * 2, id="2+2"),
        pytest.param(["oneccl"] + ["mpi"] * 3, id="1+3", marks=pytest.mark.slow),
        pytest.param(["mpi"] * 3 + ["oneccl"] + ["ucx"] * 2, id="3+1+2", marks=pytest.mark.slow),
    ],
)
def test_digits_trains_as_one_process_does(vendors: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    codes = run_ranks(len(vendors), digits, vendors=vendors, env={"TERM": "dumb"}, timeout=DEADLINE)
    output = capfd.readouterr().out
    assert codes == [0] * len(vendors), output
    assert output.count(" ok ") == 5, output
    assert "WRONG" not in output


def digits_until_one_dies() -> int:
    return program("digits.py")(["--elastic", "--kill", "1"])


def test_digits_goes_on_without_a_rank() -> None:
    vendors = ["oneccl"] * 2 + ["ucx"] * 2
    with pytest.raises(RanksFailed) as caught:
        run_ranks(4, digits_until_one_dies, vendors=vendors, env={"TERM": "dumb"}, timeout=240.0, recovery=True)
    output = caught.value.output
    assert caught.value.failures.keys() == {1}, output
    assert caught.value.results == {0: 0, 2: 0, 3: 0}, output
    assert output.count(" ok ") == 6, output
    assert "rank 1 was lost, 1 of 4 seats are free" in output


@pytest.mark.parametrize(
    ("vendors", "standin_ranks"),
    [
        pytest.param(["mpi"] * 2 + ["oneccl"] * 2, [], id="2+2", marks=pytest.mark.slow),
        pytest.param(["oneccl"] + ["mpi"] * 3, [], id="1+3"),
        pytest.param(["ucx"] + ["mpi"] * 2, [0], id="1 with CuPy+2"),
    ],
)
def test_heat_and_cg_compute_what_one_process_does(
    vendors: list[str], standin_ranks: list[int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cupyx" / "scipy").mkdir(parents=True)
    (tmp_path / "cupy.py").write_text(STANDIN)
    (tmp_path / "cupyx" / "scipy" / "sparse.py").write_text(STANDIN_SPARSE)
    nranks, nclusters = len(vendors), len(set(vendors))
    heat, cg = tmp_path / "heat.png", tmp_path / "cg.png"
    calls = [
        ("heat.py", ["--size", "50", "--steps", "120", "--plot", str(heat)]),  # 50 rows in 3 blocks: not evenly
        ("cg.py", ["--size", "23", "--plot", str(cg)]),  # 529 rows: not evenly on 2, 3 or 4 ranks
    ]
    codes = run_ranks(nranks, run_both, calls, str(tmp_path), standin_ranks, vendors=vendors, timeout=DEADLINE)
    output = capfd.readouterr().out
    assert codes == [[0, 0]] * nranks, output
    assert output.count("ok  ") == 4, output
    assert "WRONG" not in output
    assert output.count(f"rank 0 computes with {'cupy' if standin_ranks else 'numpy'}") == 2
    check_picture(heat, (700, 600), "heat.py", nclusters)
    check_picture(cg, (1100, 500), "cg.py", nclusters)


@pytest.mark.parametrize(("name", "proofs"), [("digits.py", 5), ("heat.py", 2), ("cg.py", 2)])
def test_examples_run_without_a_launcher(name: str, proofs: int) -> None:
    done = run([sys.executable, EXAMPLES / name])
    assert done.stdout.count("ok  ") == proofs
    assert done.stderr == ""


@pytest.mark.parametrize("error", [1e-9, float("nan")])
@pytest.mark.parametrize(("name", "function"), [("heat.py", "gather"), ("cg.py", "solve_distributed")])
def test_a_wrong_result_is_said_and_is_the_exit_code(
    name: str, function: str, error: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = program(name)
    right = main.__globals__[function]

    def wrong(*args: Any) -> Any:
        result = right(*args)
        (result if name == "heat.py" else result[0]).flat[-1] += error
        return result

    monkeypatch.setitem(main.__globals__, function, wrong)
    assert main(["--size", "12"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_heat_is_right_in_one_process() -> None:
    """A wave that is an eigenvector of the stencil fades by its eigenvalue in each step."""
    advance, rate = (program("heat.py").__globals__[name] for name in ("advance", "RATE"))
    size = 20
    wave = np.sin(np.pi * np.arange(size + 2) / (size + 1))
    u = wave[:, None] * wave
    new = u.copy()
    advance(u, new, 1, size + 1, 1, size + 1)
    fading = 1 - 8 * rate * np.sin(np.pi / 2 / (size + 1)) ** 2
    np.testing.assert_allclose(new[1:-1, 1:-1], fading * u[1:-1, 1:-1], rtol=0, atol=1e-14)


def test_cg_is_right_in_one_process() -> None:
    """Its solution is that of a direct solver."""
    from scipy.sparse.linalg import spsolve

    poisson, solve = (program("cg.py").__globals__[name] for name in ("poisson", "solve"))
    matrix, b = poisson(30, 0, 900)
    x, history = solve(matrix, b, lambda v, w: (v @ w).reshape(1), 300)
    np.testing.assert_allclose(x, spsolve(matrix.tocsc(), b), rtol=0, atol=1e-10)
    assert history[-1] <= 1e-12 < history[-2]


@pytest.mark.parametrize("name", ["heat.py", "cg.py"])
def test_what_cannot_be_divided_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program(name)(["--size", "0"])
    assert "--size 1 or more" in capsys.readouterr().err
