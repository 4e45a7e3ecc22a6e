"""What a run needs to say about the machine that it ran on."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from bloodcell_lib import paths


def keep_memory() -> None:
    """Lets this process keep freed memory for its next tensors rather than give it back to the system (glibc alone).

    By default glibc maps every large tensor afresh, and the system zeroes its pages again at every training step.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


def reset_peak_memory(device: torch.device) -> None:
    """Lets `peak_memory` start from what is held now; where a system cannot, it counts from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)  # what `keep_memory` kept
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM


def peak_memory(device: torch.device) -> int:
    """Most bytes held since `reset_peak_memory`: of the GPU by torch, or of the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # not getrusage, whose peak a new process has from its parent
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def describe_machine(device: torch.device) -> dict[str, str]:
    """Device and library versions, for the record."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{cpu_name()} ({threads} thread{'s' * (threads > 1)})"
    return {
        "device": name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),  # importing it takes seconds
        "numpy": metadata.version("numpy"),
    }


def cpu_name() -> str:
    """The processor's model name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The commit of the code, with "+" where files were changed since; None outside a git checkout."""
    if not (paths.ROOT / ".git").exists():  # else git would answer for a repository further up
        return None
    git = ["git", "-C", str(paths.ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "bloodcell_lib"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
