"""The timing contract that every benchmark file follows: what a case is, how contenders are timed, what a row holds.

A case says how to build its contenders for a device. `compare` checks that their answers agree before it times
anything, then times them alternately (round r runs every peer, then cvops), so that a slow minute of the machine hits
all of them. A ratio is the median over rounds of peer time / cvops time; times are medians, with the interquartile
range beside them. Tables, JSON and plots are made from the rows by bench/report.py; pytest drives it from
bench/conftest.py, the one-minute tour from bench/quick.py.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

Call = Callable[[], Any]
SLICE_SECONDS = 4e-4  # one measurement repeats a short call until it lasts this long; short, so that few are disturbed
BUDGET_SECONDS = 2.5  # one case stops after this long, if it has had its least number of rounds, or after ROUNDS
ROUNDS, MIN_ROUNDS, WARMUP = 101, 7, 2


@dataclass(frozen=True)
class Group:
    """Cases that share a target: the geometric mean of their ratios, and the least that one of them may show."""

    name: str
    target: float
    worst: float | None = None


@dataclass
class Contest:
    """A case made concrete on a device. `bytes`: each input and each output once (the memory floor). `flops`: multiply-
    adds count two (the arithmetic floor); 0 where arithmetic is not what a call is made of. `around` is what cvops runs
    in and is not timed, as it is entered once by those who use it."""

    cvops: Call
    peers: dict[str, Call]
    bytes: int
    agree: Callable[[Any, Any], None] | None = None  # None: assert_close with the default tolerances
    flops: float = 0.0
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Case:
    """One line of the table. The first peer is the one that `target` is about."""

    op: str
    name: str
    make: Callable[[str], Contest]
    target: float | None = None
    group: Group | None = None
    quick: bool = False  # belongs to the one-minute tour
    least_rounds: int = MIN_ROUNDS  # more where a gain of a few per cent is to be told from noise
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __str__(self) -> str:
        return f"{self.op} {self.name}"


@dataclass
class Row:
    """What was measured: milliseconds, quartiles, ratios."""

    op: str
    name: str
    device: str
    cvops_ms: float
    cvops_iqr: tuple[float, float]
    peers_ms: dict[str, float]
    ratios: dict[str, float]
    floor_ms: float
    rounds: int
    target: float | None = None
    group: dict[str, Any] | None = None
    best_ratios: dict[str, float] = field(default_factory=dict)  # of the fastest rounds; see `disturbed`
    disturbed: bool = False  # somebody else was using the cores: two-thread times then measure the scheduler


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_heap() -> None:
    """Has the C library keep what is freed from now on.

    glibc gives freed memory back to the system: blocks of 32 MB or more at once, and the top of the heap when more of
    it is free than it likes. The maps of a model are then faulted in page by page in the next call, of whichever of two
    equal models has bad luck; a training step of a detector can have none or hundreds of thousands of faults. Here
    nothing is given back, as with allocators that keep their blocks, so there are hardly any after the first rounds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # another C library, with habits of its own
    assert mallopt(M_TRIM_THRESHOLD, -1) == 1  # never
    assert mallopt(M_MMAP_MAX, 0) == 1  # no blocks outside of the heap


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def nbytes(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def forward_backward(function: Callable[..., torch.Tensor], *inputs: torch.Tensor, grad: torch.Tensor | None) -> Call:
    """A call that runs the function and its backward and returns the gradients; `grad=None` is for a scalar loss."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [x for x in leaves if x.requires_grad]
    return lambda: torch.autograd.grad(function(*leaves), wanted, grad)


def seconds(call: Call, repeat: int, device: str) -> float:
    """Mean seconds of `repeat` calls in a row; on a GPU by events, without the cost of waiting for it."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeat):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeat
    begin_at = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - begin_at) / repeat


@functools.lru_cache
def _copy_seconds(log2_bytes: int, device: str) -> float:
    source = torch.ones(max(2**log2_bytes // 8, 1), dtype=torch.float32, device=device)
    target = torch.ones_like(source)
    repeat = max(1, 2**16 // 2**log2_bytes)
    return min(seconds(lambda: target.copy_(source), repeat, device) for _ in range(60))


@functools.lru_cache
def _flop_seconds(device: str) -> float:
    a = torch.ones(1024, 1024, device=device)
    return min(seconds(lambda: a @ a, 1, device) for _ in range(20)) / (2 * 1024**3)


def floor_seconds(nbytes: int, device: str, flops: float = 0.0) -> float:
    """Time to move `nbytes` (half read, half written) at the copy bandwidth measured here for a set of that size, or to
    do `flops` at the rate of a 1024 x 1024 matrix product, whichever is longer."""
    if nbytes == 0:
        return 0.0
    log2_bytes = max(12, math.ceil(math.log2(nbytes)))
    return max(_copy_seconds(log2_bytes, device) * nbytes / 2**log2_bytes, _flop_seconds(device) * flops)


def compare(case: Case, device: str, drive: Callable[[Call, Call, int], None], rounds: int = ROUNDS) -> Row:
    """Checks agreement, then times. `drive(run_cvops, run_peers, rounds)` runs the two alternately, peers first."""
    contest = case.make(device)
    calls = {**contest.peers, "cvops": contest.cvops}
    with contest.around():
        answer = contest.cvops()
    agree = contest.agree or torch.testing.assert_close
    for name, peer in contest.peers.items():
        try:
            agree(answer, peer())
        except AssertionError as error:
            raise AssertionError(f"{case}: cvops and {name} disagree, so nothing was timed: {error}") from None
    del answer

    def timed(name: str, repeat: int) -> float:
        with contest.around() if name == "cvops" else nullcontext():
            return seconds(calls[name], repeat, device)

    once = {name: min(timed(name, 1) for _ in range(WARMUP)) for name in calls}
    repeat = {name: max(1, round(SLICE_SECONDS / max(t, 1e-7))) for name, t in once.items()}
    expected = sum(once[name] * repeat[name] for name in calls)
    rounds = max(min(case.least_rounds, rounds), min(rounds, int(BUDGET_SECONDS / expected)))
    times: dict[str, list[float]] = {name: [] for name in calls}

    def measure(*names: str) -> None:
        for name in names:
            times[name].append(timed(name, repeat[name]))

    drive(lambda: measure("cvops"), lambda: measure(*contest.peers), rounds)
    ours = times["cvops"]
    quartiles = statistics.quantiles(ours, n=4) if len(ours) > 1 else [ours[0]] * 3
    return Row(
        op=case.op,
        name=case.name,
        device=device,
        cvops_ms=statistics.median(ours) * 1e3,
        cvops_iqr=(quartiles[0] * 1e3, quartiles[2] * 1e3),
        peers_ms={name: statistics.median(times[name]) * 1e3 for name in contest.peers},
        ratios={
            name: statistics.median(p / c for p, c in zip(times[name], ours, strict=True)) for name in contest.peers
        },
        best_ratios={name: min(times[name]) / min(ours) for name in contest.peers},
        floor_ms=floor_seconds(contest.bytes, device, contest.flops) * 1e3,
        rounds=len(ours),
        disturbed=device == "cpu"
        and (os.getloadavg()[0] > 1.3 * (os.cpu_count() or 1) or quartiles[2] > 2 * quartiles[0]),
        target=case.target,
        group=None if case.group is None else vars(case.group),
    )


def drive_plain(run_cvops: Call, run_peers: Call, rounds: int) -> None:
    """The alternation without pytest."""
    for _ in range(rounds):
        run_peers()
        run_cvops()


def benchmarks(cases: Sequence[Case]) -> Callable[..., None]:
    """The pytest function of a benchmark file: `test_box_iou = benchmarks(CASES)`. The fixture is in conftest.py."""

    @pytest.mark.parametrize(
        ("case", "device"),
        [pytest.param(c, d, id=f"{c.name}-{d}") for c in cases for d in devices() if d in c.devices],
    )
    def test(case: Case, device: str, contest: Callable[[Case, str], Row]) -> None:
        contest(case, device)

    return test


def machine() -> dict[str, Any]:
    """What a reader needs to place the figures."""
    import cvops._host

    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            info = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in info.items()}
        cpu = fields.get("model name", cpu)
        if "cpu family" in fields:
            cpu += f" (family {fields['cpu family']} model {fields['model']})"
    except OSError:
        pass
    facts = {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "isa": cvops._host.active_isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    try:
        import torchvision

        facts["torchvision"] = torchvision.__version__
    except ImportError:
        pass
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def machine_slug(facts: dict[str, Any]) -> str:
    name = f"{facts['cpu']} {facts['threads']} threads {facts['isa']} {facts.get('gpu', '')}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
