"""The reader under random damage, on demand: python -m tests.checkpoint.campaign [--trials 20000]

flips    one random bit of a 1 MB checkpoint: refused, or its content is what it was
bytes    a few random bytes of any kind of file replaced, removed or repeated: refused or read
opcodes  a pickle of random instructions in a valid zip: refused or read

Anything but BadInput ends the campaign with a traceback; so does a crash, or 2 s for one file.
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from checkpoint.open import read
from checkpoint.state import decoded
from checkpoint.writer import write
from tests.checkpoint import hostile
from tests.checkpoint.content import content, put, same, small_model
from utils.errors import BadInput

PIECES = [
    *(bytes([code]) for code in range(256)),
    *(b"}", b"]", b")", b"(", b"s", b"u", b"a", b"e", b"R", b"b", b"Q", b"t", b"\x85", b"\x86") * 8,
    *(b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"K\x04", b"J\x00\x00\x00\x00", b"N", b"\x88") * 8,
    *(hostile.tensor(), hostile.STORAGE, hostile.KEY) * 8,
    *(b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n", b"ctorch\nSize\n") * 8,
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch\ndevice\n") * 8,
]


def outcome(path: Path) -> str:
    """`refused` or `read`; TimeoutError after 2 s, and whatever else goes wrong."""
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        for value in read(path).values():
            if isinstance(value, torch.Tensor):
                value.double().sum()  # every byte of it can be read
    except BadInput:
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def flips(folder: Path, chance: random.Random, trials: int) -> Counter[str]:
    large = content(1)
    large["model"]["wide"] = torch.randn(250, 1000)
    path = write(folder, large, best=False, keep=2).path
    data, counts = path.read_bytes(), Counter[str]()
    before = decoded(read(path)["model"], read(path)["residual"])
    for _ in range(trials):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        target = folder / "x.pt"
        target.write_bytes(damaged)
        counts[outcome(target)] += 1
        try:
            found = read(target)
        except BadInput:
            continue
        assert same(decoded(found["model"], found["residual"]), before), "a silent change"
    return counts


def random_bytes(folder: Path, chance: random.Random, trials: int) -> Counter[str]:
    weights = {name: value.contiguous() for name, value in small_model().state_dict().items()}
    torch.save(weights, folder / "a.pt")
    torch.save(weights, folder / "b.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, folder / "c.safetensors")
    kinds = [folder / "a.pt", folder / "b.pt", folder / "c.safetensors", put(folder / "d", 1)]
    originals, counts = [(path.suffix, path.read_bytes()) for path in kinds], Counter[str]()
    for _ in range(trials):
        suffix, data = chance.choice(originals)
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(len(damaged))
            end = start + chance.choice([0, 1, 1, 1, 2, 8, 100])
            damaged[start:end] = chance.choice(
                [chance.randbytes(end - start), chance.randbytes(4), damaged[start:end] * 2, b""]
            )
        target = folder / f"x{suffix}"
        target.write_bytes(damaged)
        counts[outcome(target)] += 1
    return counts


def opcodes(folder: Path, chance: random.Random, trials: int) -> Counter[str]:
    counts, target = Counter[str](), folder / "x.pt"
    for _ in range(trials):
        pickled = b"".join(chance.choices(PIECES, k=chance.randint(1, 40)))
        target.write_bytes(hostile.torch_zip(hostile.one(pickled)))
        counts[outcome(target)] += 1
    return counts


def main() -> None:
    options = argparse.ArgumentParser("python -m tests.checkpoint.campaign")
    options.add_argument("--trials", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    signal.signal(signal.SIGALRM, late)
    kinds: dict[str, Callable[[Path, random.Random, int], Counter[str]]] = {
        "flips": flips,
        "bytes": random_bytes,
        "opcodes": opcodes,
    }
    for name, kind in kinds.items():
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            counts = kind(Path(folder), random.Random(given.seed), given.trials)
        print(f"{name}: {dict(counts)} in {time.monotonic() - start:.0f} s", flush=True)


def late(*_: object) -> None:
    raise TimeoutError("more than 2 s for one file")


if __name__ == "__main__":
    main()
