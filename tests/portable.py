"""`make test-portable`: the numeric tests and the chapters as other processors would run them.

OpenBLAS, MKL and ATen pick kernels by processor; environment variables make them pick those of
another one. Every setting runs the tests marked `numeric` and all chapters in processes of their
own; one line each says how it went, and its whole output is under `_build/portable`.

    python tests/portable.py [--only haswell-1 zen-2] [--select tests|chapters]
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "_build" / "portable"
PIPELINE = "tests/test_pipeline.py"
KILLED = "test_killed_three_times_it_ends_with_the_same_bits"
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
TARGETS = {
    # The one left out compares bits of one and the same machine, for two minutes.
    "tests": ["-m", "numeric", f"--deselect={PIPELINE}::{KILLED}", "tests"],
    "chapters": [
        *("--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval.cfg", "book")
    ],
}


@dataclass(frozen=True)
class Setting:
    """Whose kernels: OpenBLAS's core type, ATen's vector instructions, MKL's branch; threads."""

    core: str
    threads: int
    aten: str
    mkl: str

    @property
    def name(self) -> str:
        """As `--only` takes it."""
        return f"{self.core.lower()}-{self.threads}"

    def environment(self) -> dict[str, str]:
        """The variables that make the libraries choose so."""
        threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        return {
            "OPENBLAS_CORETYPE": self.core,
            "ATEN_CPU_CAPABILITY": self.aten,
            "MKL_CBWR": self.mkl,
            **dict.fromkeys(threads, str(self.threads)),
        }


SETTINGS = (
    Setting("Haswell", 1, "avx2", "AVX2"),
    Setting("Haswell", 2, "default", "AVX2"),
    Setting("Prescott", 1, "default", "COMPATIBLE"),
    Setting("Prescott", 2, "avx2", "COMPATIBLE"),
    Setting("Zen", 1, "avx2", "AVX2"),
    Setting("Zen", 2, "default", "AVX2"),
    Setting("SkylakeX", 1, "default", "AVX512"),
    Setting("SkylakeX", 2, "avx2", "AVX512"),
)


def possible(processor: str) -> list[Setting]:
    """The settings that a processor with this /proc/cpuinfo can run."""
    wide = "avx512f" in processor.split()
    return [setting for setting in SETTINGS if wide or setting.core != "SkylakeX"]


def run(setting: Setting, target: str, words: Sequence[str]) -> bool:
    """Run a command under a setting, print its line, keep its output; whether it passed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{setting.name}-{target}.log"
    start = time.perf_counter()
    with log.open("w") as out:
        code = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **setting.environment()},
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    took = time.perf_counter() - start
    said = "passed" if code == 0 else f"FAILED, see {log.relative_to(ROOT)}"
    print(f"{setting.name:<12} {target:<9} {took:6.0f} s  {said}", flush=True)
    if code:
        lines = log.read_text().splitlines()
        print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))), flush=True)
    return code == 0


def run_all(jobs: Iterable[tuple[Setting, str]]) -> bool:
    """Run all jobs, single-threaded ones two at a time; whether all passed."""
    passed = []
    waiting = list(jobs)
    for threads, at_once in ((1, 2), (2, 1)):
        now = [job for job in waiting if job[0].threads == threads]
        with ThreadPoolExecutor(at_once) as pool:
            passed += pool.map(lambda job: run(*job, [*PYTEST, *TARGETS[job[1]]]), now)
    return all(passed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 where every setting passed."""
    settings = possible(Path("/proc/cpuinfo").read_text())
    names = [setting.name for setting in settings]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SETTING")
    parser.add_argument("--select", choices=list(TARGETS), help="one of both")
    args = parser.parse_args(arguments)
    targets = [args.select] if args.select else list(TARGETS)
    jobs = [(s, target) for target in targets for s in settings if s.name in args.only]
    return 0 if run_all(jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
