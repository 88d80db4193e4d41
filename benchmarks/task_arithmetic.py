"""Task arithmetic over checkpoints on disk: base + 0.5 * (a - base) - (b - base), ours beside plain
streaming loops.

python benchmarks/task_arithmetic.py --gib 1.78 --folder /dev/shm/monochord-bench --repeats 3

Every run is a process of its own; repetitions alternate and medians are compared. The plain loops read, add
and write one tensor at a time with torch and safetensors alone: one maps the files, one reads them into
memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from timing import Report

HIDDEN, INNER, VOCAB = 2048, 5632, 32000
MODES = ("ours", "loop-mapped", "loop-read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=0.2, help="size of each checkpoint")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/monochord-bench"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(arguments.run, arguments.folder)))
        return
    try:
        if not arguments.folder.exists():
            for seed, name in enumerate(("base", "a", "b")):
                build(arguments.folder / name, arguments.gib, arguments.dtype, seed)
        figures = measure(arguments.folder, arguments.repeats)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    report = Report(__file__)
    for key, unit in (("seconds", "time"), ("peak_mb", "peak memory")):
        best = min(MODES[1:], key=lambda mode: figures[mode][key])
        found = {mode: figures[mode][key] / figures[best][key] for mode in MODES}
        title = f"task arithmetic, base and two checkpoints of {arguments.gib} GiB in {arguments.dtype}"
        report.add(title, f"{unit} of {best}", found, 1.1, ours="ours")
    report.save()


def measure(folder: Path, repeats: int) -> dict:
    seen: dict[str, list[dict]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode in MODES:
            command = [sys.executable, __file__, "--run", mode, "--folder", str(folder)]
            seen[mode].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            check_equal(folder, mode)
            shutil.rmtree(folder / "out")
    figures: dict = {}
    for mode, runs in seen.items():
        for key in runs[0]:
            figures.setdefault(mode, {})[key] = round(statistics.median(run[key] for run in runs), 3)
    return figures


def run(mode: str, folder: Path) -> dict[str, float]:
    import torch  # noqa: F401

    if mode == "ours":
        from monochord.core.delta import Delta
    start_mb, start = peak_mb(), time.perf_counter()
    base, a, b, out = (folder / name for name in ("base", "a", "b", "out"))
    if mode == "ours":
        delta = 0.5 * Delta.between(base, a) - Delta.between(base, b)
        delta.apply_to_checkpoint(base, out)
    else:
        loop(base, a, b, out, mapped=mode == "loop-mapped")
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb(), "start_mb": start_mb}


def loop(base: Path, a: Path, b: Path, out: Path, *, mapped: bool) -> None:
    import torch
    from safetensors import safe_open

    def tensors(path: Path, header: dict, names: list[str]) -> Iterator[torch.Tensor]:
        if mapped:
            with safe_open(path, "pt") as file:
                for name in names:
                    yield file.get_tensor(name)
            return
        with open(path, "rb") as file:
            offset = 8 + struct.unpack("<Q", file.read(8))[0]
            for name in names:
                start, end = header[name]["data_offsets"]
                raw = bytearray(end - start)
                file.seek(offset + start)
                file.readinto(raw)
                dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[header[name]["dtype"]]
                yield torch.frombuffer(raw, dtype=dtype).reshape(header[name]["shape"])

    out.mkdir()
    for shard in sorted(base.glob("*.safetensors")):
        with open(shard, "rb") as file:
            length = file.read(8)
            text = file.read(struct.unpack("<Q", length)[0])
        header = json.loads(text)
        names = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        readers = [tensors(folder / shard.name, header, names) for folder in (base, a, b)]
        with open(out / shard.name, "wb") as file:
            file.write(length + text)
            for w, x, y in zip(*readers, strict=True):
                total = w.float().mul(1.5).add_(x, alpha=0.5).sub_(y)
                file.write(total.to(w.dtype).view(torch.uint8).numpy())
    for path in base.glob("*.json"):
        shutil.copy2(path, out)


def check_equal(folder: Path, mode: str) -> None:
    """One tensor of the result against the formula, so that a fast wrong answer does not count."""
    import torch
    from safetensors import safe_open

    shard, name = "model-00001.safetensors", "layers.0.q.weight"
    values = []
    for part in ("base", "a", "b", "out"):
        with safe_open(folder / part / shard, "pt") as file:
            values.append(file.get_slice(name)[:64].double())
    w, x, y, result = values
    torch.testing.assert_close(result, w + 0.5 * (x - w) - (y - w), rtol=1e-2, atol=1e-3, msg=mode)


def build(folder: Path, gib: float, dtype: str, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    shapes = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN)}
    shapes |= {"up": (INNER, HIDDEN), "gate": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    generator = torch.Generator().manual_seed(seed)
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    left = int(gib * 2**30) // size
    folder.mkdir(parents=True)
    table: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(table.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        table.update(dict.fromkeys(shard, name))
        shard.clear()

    layer = 0
    while left > 0:
        for name, (rows, columns) in shapes.items():
            rows = min(rows, left // columns)
            if rows:
                tensor = torch.empty(rows, columns, dtype=getattr(torch, dtype)).normal_(generator=generator)
                shard[f"layers.{layer}.{name}.weight"] = tensor
            left -= rows * columns
        left = left if left >= INNER else 0
        layer += 1
        if sum(tensor.nbytes for tensor in shard.values()) > 400 * 2**20:
            flush()
    if shard:
        flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def peak_mb() -> float:
    """Peak resident memory of this process alone (`ru_maxrss` would count the parent's before the start)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
