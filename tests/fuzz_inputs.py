"""Damaged inputs by the thousand: `python tests/fuzz_inputs.py [--count N] [--seed S]`.

Every input is a small good one with something changed: bytes of a safetensors or pickled file, its
header rewritten, a config, index, adapter or recipe with odd values. Each is given to a command in
this process, which must end in one clear line or in success, in seconds, and in bounded memory.
Prints what did not. tests/test_fuzz.py runs a few of them.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergelib import cli

SECONDS, GIB = 20, 2**30
ODD = [
    None,
    True,
    -1,
    0,
    1e308,
    10**11,
    2**63,
    "",
    "x" * 300,
    [],
    {},
    [[]],
    {"a": {}},
    "\ud800",
    "é\n",
]


class Slow(BaseException):
    """A command took longer than it may."""


def good(folder: Path) -> None:
    """Small inputs of every kind that are as they should be."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (4, 6), "n": ()}
    states = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(3)]
    for name, state in zip(("base", "one", "two"), states, strict=True):
        save_file(state, folder / f"{name}.safetensors")
        torch.save(state, folder / f"{name}.pt")
        torch.save(state, folder / f"{name}.old", _use_new_zipfile_serialization=False)
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(
            json.dumps({"model_type": "x", "dtype": "float32"})
        )
        index = {"metadata": {"total_size": 1}, "weight_map": {}}
        for k, part in enumerate((list(shapes)[:2], list(shapes)[2:])):
            file = f"model-{k + 1:05}-of-00002.safetensors"
            save_file({n: state[n] for n in part}, folder / name / file)
            index["weight_map"] |= dict.fromkeys(part, file)
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))
    adapter = folder / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["a"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    start = "base_model.model.a.lora_"
    factors = {f"{start}A.weight": torch.ones(2, 4), f"{start}B.weight": torch.ones(6, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    (folder / "recipe.yaml").write_text(
        "base: base.safetensors\nmethod: ties\nparameters: {density: 0.5}\ndtype: float16\n"
        "models:\n  - {model: one.safetensors, weight: 0.5}\n  - two.safetensors\nexclude: ['n']\n"
    )


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, repeated or put in: somewhere, often near the start or the end."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = rng.choice((len(out), min(len(out), 200)))
        at = (
            rng.randrange(max(near, 1))
            if rng.random() < 0.7
            else max(0, len(out) - rng.randrange(1, 200))
        )
        how = rng.randrange(5)
        if how == 0:
            del out[at:]
        elif how == 1 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif how == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
        elif how == 3:
            out[at : at + 8] = struct.pack("<Q", rng.choice((0, 2**63 - 1, 2**64 - 1, 10**11)))
        else:
            out[at:at] = out[at : at + rng.choice((1, 50))]
    return bytes(out)


def damaged_value(value: object, rng: random.Random, depth: int = 0) -> object:
    """One value of a JSON document changed, left out or doubled."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        out, key = dict(value), rng.choice(list(value))
        how = rng.random()
        if how < 0.15:
            del out[key]
        elif how < 0.3:
            out[rng.choice(["__metadata__", "", "x", key + "."])] = out.pop(key)
        else:
            out[key] = damaged_value(value[key], rng, depth + 1)
        return out
    if isinstance(value, list) and value and rng.random() < 0.7:
        k = rng.randrange(len(value))
        return [*value[:k], damaged_value(value[k], rng, depth + 1), *value[k + 1 :]]
    return rng.choice(ODD)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """A document with a wrong value, a key twice, or nested deeply; or damaged bytes."""
    how = rng.random()
    if how < 0.2:
        return damaged_bytes(data, rng)
    if how < 0.3:
        return data.rstrip()[:-1] + b', "model_type": 1, "model_type": 2, "weight_map": 3}'
    if how < 0.4:
        return b'{"a":' * 10**5 + b"1" + b"}" * 10**5
    return json.dumps(damaged_value(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def damaged_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else."""
    size = struct.unpack("<Q", data[:8])[0]
    header = damaged_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def damaged_yaml(data: bytes, rng: random.Random) -> bytes:
    """A recipe with a line twice, cut, an odd value, or aliases that grow."""
    lines = data.decode().splitlines()
    k = rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        lines.insert(k, lines[k])
    elif how == 1:
        lines[k] = lines[k].split(":")[0] + ": " + json.dumps(rng.choice(ODD))
    elif how == 2:
        del lines[k]
    elif how == 3:
        lines.insert(
            k,
            rng.choice(["\tx: 1", "? [", "seed: .nan", "seed: 1e11", "- ]", "!!python/name:os.x"]),
        )
    elif how == 4:
        lines += ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    else:
        return damaged_bytes(data, rng)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


KINDS: list[tuple[str, Callable[[bytes, random.Random], bytes]]] = [
    ("one.safetensors", damaged_bytes),
    ("one.safetensors", damaged_header),
    ("one.pt", damaged_bytes),
    ("one.old", damaged_bytes),
    ("one/config.json", damaged_json),
    ("one/model.safetensors.index.json", damaged_json),
    ("one/model-00001-of-00002.safetensors", damaged_header),
    ("adapter/adapter_config.json", damaged_json),
    ("adapter/adapter_model.safetensors", damaged_header),
    ("recipe.yaml", damaged_yaml),
]


def words_for(name: str, rng: random.Random) -> list[str]:
    """A command that reads the input."""
    if name == "recipe.yaml":
        return ["merge", "--recipe", name, "--out", "out.safetensors"]
    model = name.split("/")[0]
    base = rng.choice(["base.safetensors", "base", "base.pt"])
    verb = rng.choice(["merge", "merge", "metrics", "base"])
    if verb == "metrics":
        return ["metrics", "--base", base, "--models", model, "two.safetensors", "--out", "t.csv"]
    method = rng.choice(["weight_avg", "ties", "tsv", "dare"])
    out = rng.choice(["out.safetensors", "out.pt", "out"])
    if verb == "base" and model != "adapter":
        base, model = model, "two.safetensors"
    return ["merge", "--base", base, "--models", model, "--method", method, "--out", out]


def trouble(words: list[str]) -> str:
    """What is wrong with how a command ends; nothing if all is well."""
    out, err = io.StringIO(), io.StringIO()

    def stop(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(words)
    except Slow:
        return f"took more than {SECONDS} s"
    except SystemExit as error:
        return f"left with {error.code}: {err.getvalue()}"
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    lines = [x for x in err.getvalue().splitlines() if not x.startswith("mergelib: note: ")]
    if status not in (0, 2) or len(lines) != (status == 2) or "not foreseen" in err.getvalue():
        return f"status {status}: {err.getvalue()}"
    left = [file.name for file in Path().rglob(".*") if file.is_file()]
    return f"left {left}" if left else ""


def fuzz(count: int, seed: int) -> list[str]:
    """The commands that did not end as they should, each with how its input can be made again."""
    before, found = Path.cwd(), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            good(Path("."))
            for k in range(count):
                rng = random.Random(seed * 10**6 + k)
                name, damage = KINDS[k % len(KINDS)]
                data = Path(name).read_bytes()
                Path(name).write_bytes(damage(data, rng))
                words = words_for(name, rng)
                if problem := trouble(words):
                    found.append(f"{k} {name} {damage.__name__} {' '.join(words)}: {problem[:300]}")
                Path(name).write_bytes(data)
                for made in ("out.safetensors", "out.pt", "t.csv", "out.recipe.yaml"):
                    Path(made).unlink(missing_ok=True)
                shutil.rmtree("out", ignore_errors=True)
        finally:
            os.chdir(before)
    return found


def main() -> int:
    """Run, and print how it went; 1 if something did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = fuzz(args.count, args.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print("\n".join(found))
    print(f"{args.count} damaged inputs, {len(found)} not well; peak memory {peak:.2f} GiB")
    return bool(found) or peak > 1


if __name__ == "__main__":
    sys.exit(main())
