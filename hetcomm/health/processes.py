"""What the kernel says of other processes of this machine."""

from __future__ import annotations

__all__ = ["is_stopped"]


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a debugger; one that is not there is not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(512)
    except OSError:
        return False
    return text[text.rfind(b")") + 2 :][:1] in (b"T", b"t")  # the name before it may have parentheses of its own
