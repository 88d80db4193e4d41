"""How long `import monochord` and `monochord --help` take, above a bare interpreter.

python benchmarks/start.py
"""

import shutil
import statistics
import subprocess
import sys
import time

from timing import Report


def seconds(command: list[str], runs: int = 9) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    report = Report(__file__)
    bare = seconds([sys.executable, "-c", "pass"])
    script = shutil.which("monochord", path=str(sys.prefix) + "/bin") or "monochord"
    for name, command in {
        "import monochord": [sys.executable, "-c", "import monochord"],
        "monochord --help": [script, "--help"],
    }.items():
        report.add(name, "seconds", {"monochord": seconds(command), "bare interpreter": bare}, 0.15)
    report.save()


if __name__ == "__main__":
    main()
