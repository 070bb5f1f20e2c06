"""What the tests and the run under compute-sanitizer have shown, read from the reports that they leave behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from benchmarks.gpu.report import Claim

MATRIX = "Collective matrix, all dtypes and ops, device arrays, equal to NumPy, bit-identical: "
MATRIX_LINES = {
    "nccl-1+1": MATRIX + "1+1 GPU ranks (nccl)",
    "ucx-2+1": MATRIX + "2+1 GPU ranks (ucx)",
    "ucx-2+2": MATRIX + "2+2 GPU ranks (ucx)",
    "nccl+mpi-1+2": MATRIX + "1 GPU rank (nccl) + 2 CPU ranks (mpi)",
}
OTHER_TESTS = "All other tests that need a GPU"
FINDINGS = ("Invalid", "Misaligned")  # how the tool's reports of errors begin
SANITIZER_LINE = "compute-sanitizer memcheck clean on a run of the matrix"


def test_cases(junit: str) -> list[dict[str, str]]:
    """The tests of a JUnit report: name, result ('passed', 'failed', 'skipped'), and why it is not 'passed'.

    Properties that a test recorded are under their names.
    """
    found = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        entry = {"name": f"{case.get('classname', '')}::{case.get('name', '')}", "result": "passed", "reason": ""}
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                entry["result"] = "skipped" if child.tag == "skipped" else "failed"
                entry["reason"] = (child.get("message") or child.text or "").strip()[:2000]
        for each in case.iter("property"):
            entry[each.get("name", "")] = each.get("value", "")
        found.append(entry)
    return found


def judge_tests(cases: Sequence[Mapping[str, str]], status: int) -> list[Claim]:
    """The claims about the matrix, and one about all other tests."""
    claims = []
    for job, line in MATRIX_LINES.items():
        case = next((each for each in cases if each["name"].endswith(f"test_matrix[{job}]")), None)
        if case is None:
            claims.append(Claim(line, why="its test did not run"))
        elif case["result"] == "skipped":
            claims.append(Claim(line, why=case["reason"]))
        else:
            passed = case["result"] == "passed"
            claims.append(Claim(line, case.get("cases", ""), passed, "" if passed else first_line(case["reason"])))
    others = [each for each in cases if not any(each["name"].endswith(f"[{job}]") for job in MATRIX_LINES)]
    counts = {result: sum(each["result"] == result for each in others) for result in ("passed", "failed", "skipped")}
    figure = ", ".join(f"{count} {result}" for result, count in counts.items() if count)
    failed = [each["name"].rpartition("::")[2] for each in others if each["result"] == "failed"]
    if not counts["passed"] and not failed:
        claims.append(Claim(OTHER_TESTS, figure, None, f"none ran; pytest ended with status {status}"))
    else:
        claims.append(Claim(OTHER_TESTS, figure, not failed, f"failed: {', '.join(failed)}" if failed else ""))
    return claims


def judge_sanitizer(status: int, log: str, cases: Sequence[Mapping[str, str]]) -> Claim:
    """The claim, from the exit status, the tool's logs of all processes, and the report of the test it ran."""
    ends = [line.partition("ERROR SUMMARY:")[2].strip() for line in log.splitlines() if "ERROR SUMMARY:" in line]
    errors = sum(int(end.split()[0]) for end in ends)
    ran = cases[0].get("cases", "") if cases else ""
    figure = f"{errors} errors in {len(ends)} processes{', ' if ran else ''}{ran}" if ends else ""
    if errors:
        text = [line.lstrip("= ").strip() for line in log.splitlines()]
        return Claim(SANITIZER_LINE, figure, False, next((line for line in text if line.startswith(FINDINGS)), ""))
    if status != 0 or not ran:
        reason = first_line(cases[0]["reason"]) if cases else "its test left no report"
        return Claim(SANITIZER_LINE, figure, None, f"the run ended with status {status}: {reason}")
    return Claim(SANITIZER_LINE, figure, True)


def first_line(text: str) -> str:
    """The first line of a text, shortened."""
    return text.strip().partition("\n")[0][:200]
