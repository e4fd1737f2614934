"""Mangled files for every parser: read right or refused in words; no crash, no hang, no flood of memory, no library's traceback.

python benchmarks/chaos_inputs.py OUT                       # 100,000, over all parsers; kill and repeat it as you like
python benchmarks/chaos_inputs.py OUT --n 5000 --only tiff lif
python benchmarks/chaos_inputs.py OUT --again FILE tiff     # read one kept input once more
python benchmarks/chaos_inputs.py OUT --shrink FILE tiff    # make it as small as it goes while it fails in the same place

A batch is read in a process of its own and is the same for the same seed. An input that is refused at a new place joins
those that are mangled further, so that the search goes on from what came far. An input that fails is kept in OUT/findings
with what it did; OUT/batches.jsonl has a row for each batch that is done. The table at the end is markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from pathlib import Path

from chaos_parsers import Parser, names, parser_of
from test_fuzz import NASTY, mangled_bytes, mangled_value

from cellkit.errors import UserError
from cellkit.log import show_log

BATCH = 500
MOST_CPU_S = 10
MOST_WALL_S = 120  # on a busy machine
MOST_BYTES = 2 * 2**30
NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**48,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WORDS = ("nan", "inf", "-1", "0", "1e308", "99999999999999999999", "null", "true", "[]", "{}", '""', "'", "\x00", "\ud7ff", 
         "\u2028", "&a;", "<a/>", "!!", "*a", "&a", "%s", "{}", "../x", "=1", " ", "\t", "\r", "é")  # fmt: skip


# ---- mangling --------------------------------------------------------------------------------------------------------
def mangled(content: bytes, form: str, rng: random.Random) -> bytes:
    """Return a file changed at a few places, in its own structure or byte by byte."""
    if form == "json" and rng.random() < 0.7:
        try:
            return json.dumps(mangled_value(json.loads(content), rng)).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            pass
    if form == "text" and rng.random() < 0.7:
        return mangled_words(content, rng)
    if form in PACKED and rng.random() < 0.7:
        with contextlib.suppress(Exception):  # it is no such file any more
            return PACKED[form](content, rng)
    return mangled_numbers(content, rng) if rng.random() < 0.4 else mangled_bytes(content or b"\0", rng)


def mangled_numbers(content: bytes, rng: random.Random) -> bytes:
    """Write numbers that are awkward over one to eight bytes, or zeros over a stretch, near the beginning more often."""
    raw = bytearray(content or b"\0" * 8)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(min(len(raw), rng.choice([64, 1024, len(raw)])))
        wide = rng.choice([1, 2, 2, 4, 4, 8])
        value = rng.choice(NUMBERS) + rng.choice([0, 0, 1, -1])
        raw[at : at + wide] = (value % 2 ** (8 * wide)).to_bytes(wide, rng.choice(["little", "big"]))
        if rng.random() < 0.1:
            raw[at : at + rng.randrange(64)] = bytes(rng.randrange(64))
    return bytes(raw)


def mangled_words(content: bytes, rng: random.Random) -> bytes:
    """Replace, repeat, swap or drop words of a text."""
    import re

    parts = re.split(rb"([\s,;:<>=\"'\[\]{}]+)", content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, kind = rng.randrange(len(parts)), rng.randrange(5)
        if kind == 0:
            parts[at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        elif kind == 1:
            parts[at] = str(rng.choice(NASTY)).encode("utf-8", "surrogatepass")
        elif kind == 2:
            parts[at] = b""
        elif kind == 3:
            parts[at] = rng.choice(parts)
        else:
            parts[at] = parts[at] * rng.choice([2, 3, 1000])
    return b"".join(parts)


def mangled_members(content: bytes, rng: random.Random) -> bytes:
    """Mangle a member of a ZIP, or its name, and pack it again with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        comment = archive.comment
    at = rng.randrange(len(members))
    name, inside = members[at]
    kind = rng.randrange(6)
    if kind == 0:
        members[at] = (
            rng.choice(["../x", "/x", "a\\b", "", "a/", name + "\0", "x" * 300, name.upper(), "rdf.yaml"]),
            inside,
        )
    elif kind == 1:
        members.append((name, inside))
    elif kind == 2:
        del members[at]
    else:
        text = name.endswith((".yaml", ".json", ".csv", ".txt"))
        members[at] = (name, mangled(inside, "text" if text else "bytes", rng))
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(out, "w") as archive:
            for name, inside in members:
                archive.writestr(name, inside)
            archive.comment = mangled_bytes(comment, rng)[:60_000] if comment and rng.random() < 0.2 else comment
    return out.getvalue()


def mangled_gzip(content: bytes, rng: random.Random) -> bytes:
    """Mangle what is inside a gzip file."""
    return gzip.compress(mangled(gzip.decompress(content), "bytes", rng), mtime=0)


def mangled_chunks(content: bytes, rng: random.Random) -> bytes:
    """Mangle the body of a chunk of a PNG, or repeat, drop or move a chunk; the checksums are right."""
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    at, kind = rng.randrange(len(chunks)), rng.randrange(6)
    if kind == 0:
        del chunks[at]
    elif kind == 1:
        chunks.insert(rng.randrange(len(chunks)), chunks[at])
    else:
        chunks[at] = (chunks[at][0], mangled(chunks[at][1], "bytes", rng))
    parts = [n + body + (zlib.crc32(n + body)).to_bytes(4, "big") for n, body in chunks]
    return content[:8] + b"".join(len(part[4:-4]).to_bytes(4, "big") + part for part in parts)


PACKED = {"zip": mangled_members, "gzip": mangled_gzip, "png": mangled_chunks}


# ---- reading ---------------------------------------------------------------------------------------------------------
def lay_out(parser: Parser, folder: Path) -> None:
    """Write all files as they should be."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in {**{name: many[0] for name, many in parser.files.items()}, **parser.beside}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def outcome(parser: Parser, folder: Path) -> tuple[str, str]:
    """Read, and return ("read" | "refused" | "failed", where or what)."""
    try:
        parser.read(folder)
    except UserError as error:
        chain, one = [], error
        while one is not None and len(chain) < 20:
            chain.append(one)
            one = one.__cause__ or one.__context__
        if any(isinstance(one, MemoryError) for one in chain):
            return "failed", "asked for more memory than there is: " + "".join(traceback.format_exception(error))[
                -3000:
            ]
        if not error.problem.strip() or not error.remedy.strip():
            return "failed", f"says not what to do: {error}"
        return "refused", place_of(error)
    except BaseException:
        return "failed", traceback.format_exc()[-3000:]
    return "read", ""


def place_of(error: BaseException) -> str:
    """Return the lines of the package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = traceback.extract_tb(error.__context__.__traceback__) if error.__context__ else []
    own = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/cellkit/" in f.filename]
    return " ".join([*own[-3:], *(f"{Path(f.filename).name}:{f.lineno}" for f in inner[-1:])])


def read_batch(name: str, batch: int, count: int, out: Path, seed: int) -> dict:
    """Read the inputs of one batch; return its row."""
    with tempfile.TemporaryDirectory() as made:
        parser = parser_of(name, Path(made) / "good")
        folder = Path(made) / "here"
        os.environ["XDG_CACHE_HOME"] = str(Path(made) / "cache")
        lay_out(parser, folder)
        good = [(file, content) for file, many in parser.files.items() for content in many]
        told = Counter()
        for file, content in good:  # what is good is read; and what is imported on first use counts for no input
            (folder / file).write_bytes(content)
            how, why = outcome(parser, folder)
            assert how == "read", f"{name}: {file}, not mangled, is {how}: {why}"
            (folder / file).write_bytes(parser.files[file][0])
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MOST_BYTES + 2**30,) * 2)
        rng, corpus, seen = random.Random(f"{name} {batch} {seed}"), list(good), set()
        findings, slowest = [], 0.0
        now = out / "now" / f"{name}-{batch}"
        now.parent.mkdir(parents=True, exist_ok=True)
        faulthandler.register(signal.SIGPROF, chain=True)
        for number in range(count):
            file, content = rng.choice(good if rng.random() < 0.5 else corpus)
            raw = mangled(content, parser.form, rng)
            now.write_bytes(raw)
            (folder / file).write_bytes(raw)
            signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
            faulthandler.dump_traceback_later(MOST_WALL_S, exit=True)
            begun = time.process_time()
            how, where = outcome(parser, folder)
            spent = time.process_time() - begun
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if how != "failed" and peak > MOST_BYTES:
                findings.append(_keep(out, name, batch, number, file, raw, f"{peak / 2**30:.1f} GiB of memory"))
                told["failed"] += 1
                break  # the peak stays
            told[how] += 1
            slowest = max(slowest, spent)
            if how == "failed":
                findings.append(_keep(out, name, batch, number, file, raw, where))
            elif how == "refused" and where not in seen and len(raw) < 4 * len(content) + 1000:
                seen.add(where)
                corpus.append((file, raw))
            lay_out(parser, folder) if number % 50 == 49 else (folder / file).write_bytes(parser.files[file][0])
        now.unlink()
        return {"parser": name, "batch": batch, "seed": seed, **{k: told[k] for k in ("read", "refused", "failed")},
                "places": len(seen), "slowest_s": round(slowest, 2), "peak_bytes": peak, "cpu_s": round(time.process_time(), 1),
                "findings": findings}  # fmt: skip


def _mapped() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _keep(out: Path, name: str, batch: int, number: int, file: str, raw: bytes, why: str) -> str:
    place = out / "findings" / f"{name.replace(' ', '_')}-{batch}-{number}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "input").write_bytes(raw)
    (place / "why.txt").write_text(f"{file}\n{why}", encoding="utf-8", errors="backslashreplace")
    return place.name


def shrink(name: str, path: Path, file: str) -> bytes:
    """Return the smallest input found that fails as this one does."""
    with tempfile.TemporaryDirectory() as made:
        parser, folder = parser_of(name, Path(made) / "good"), Path(made) / "here"
        lay_out(parser, folder)

        def kind_of(raw: bytes) -> str:
            (folder / file).write_bytes(raw)
            how, why = outcome(parser, folder)
            return " ".join(why.splitlines()[-1:])[:40] if how == "failed" else ""

        raw = path.read_bytes()
        wanted, step = kind_of(raw), max(len(raw) // 2, 1)
        assert wanted, "it does not fail"
        while step:
            at = 0
            while at < len(raw):
                less = raw[:at] + raw[at + step :]
                if kind_of(less) == wanted:
                    raw = less
                else:
                    at += step
            step //= 2
        return raw


# ---- all batches -----------------------------------------------------------------------------------------------------
def run_all(out: Path, names: list[str], n: int, seed: int, minutes: float) -> None:
    """Read what is not yet read, a process for each batch."""
    log, begun = out / "batches.jsonl", time.monotonic()
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["parser"], row["batch"]) for row in rows if row["seed"] == seed}
    each = -(-n // len(names))
    wanted = [(name, batch) for batch in range(-(-each // BATCH)) for name in names if (name, batch) not in done]
    for name, batch in wanted:
        if minutes and time.monotonic() - begun > 60 * minutes:
            print(f"stopped after {minutes:g} minutes; repeat the command", file=sys.stderr)
            return
        count = min(BATCH, each - batch * BATCH)
        command = [sys.executable, "-X", "faulthandler", __file__, str(out), "--batch", name, str(batch), str(count)]
        ended = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True)
        if ended.returncode == 0:
            row = json.loads(ended.stdout.splitlines()[-1])
        else:  # the process is gone: a crash, a hang; what it read last is kept, and what it had read counts for nothing
            now = out / "now" / f"{name}-{batch}"
            if not now.exists():
                raise SystemExit(f"{name} {batch}: exit code {ended.returncode}\n{ended.stderr[-3000:]}")
            why = f"exit code {ended.returncode}\n{ended.stderr[-3000:]}"
            kept = _keep(out, name, batch, -1, "?", now.read_bytes(), why)
            row = {"parser": name, "batch": batch, "seed": seed, "read": 0, "refused": 0, "failed": 1, "places": 0,
                   "slowest_s": 0, "peak_bytes": 0, "cpu_s": 0, "findings": [kept]}  # fmt: skip
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\n")
        for one in row["findings"]:
            last = (out / "findings" / one / "why.txt").read_text().splitlines()[-1][:150]
            print(f"{one}: {last}", file=sys.stderr, flush=True)


def table_of(out: Path) -> str:
    """Return what was read, as markdown."""
    rows = [json.loads(line) for line in (out / "batches.jsonl").read_text().splitlines()]
    by = defaultdict(list)
    for row in rows:
        by[row["parser"]].append(row)
    lines = [
        "| parser | inputs | read | refused | failed | places | slowest (CPU s) | peak (GiB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = Counter()
    for name, some in by.items():
        sums = {key: sum(row[key] for row in some) for key in ("read", "refused", "failed")}
        total.update(sums)
        slow, peak = max(row["slowest_s"] for row in some), max(row["peak_bytes"] for row in some) / 2**30
        counts = [sum(sums.values()), *sums.values(), max(row["places"] for row in some)]
        lines.append(f"| {name} | {' | '.join(f'{x:,}' for x in counts)} | {slow:.1f} | {peak:.2f} |")
    lines.append(
        f"| all | {total.total():,} | {' | '.join(f'{total[k]:,}' for k in ('read', 'refused', 'failed'))} | | | |"
    )
    return "\n".join([*lines, f"\n{sum(row['cpu_s'] for row in rows):,.0f} CPU seconds, one thread."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=100_000, help="inputs over all parsers (default 100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="PARSER", help="these parsers alone")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop then with what there is (default 0: never)")
    parser.add_argument("--again", nargs=2, metavar=("FINDING", "PARSER"))
    parser.add_argument("--shrink", nargs=2, metavar=("FINDING", "PARSER"))
    parser.add_argument("--batch", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    out = given.out.resolve()
    show_log("stderr")
    warnings.simplefilter("ignore")
    if given.batch:
        name, batch, count = given.batch
        print(json.dumps(read_batch(name, int(batch), int(count), out, given.seed)))
        return
    if given.again or given.shrink:
        finding, name = given.again or given.shrink
        file = (Path(finding) / "why.txt").read_text().splitlines()[0]
        if given.shrink:
            sys.stdout.buffer.write(shrink(name, Path(finding) / "input", file))
            return
        with tempfile.TemporaryDirectory() as made:
            one, folder = parser_of(name, Path(made) / "good"), Path(made) / "here"
            lay_out(one, folder)
            file = next(iter(one.files)) if file == "?" else file
            shutil.copy(Path(finding) / "input", folder / file)
            print(*outcome(one, folder))
        return
    out.mkdir(parents=True, exist_ok=True)
    run_all(out, given.only or names(), given.n, given.seed, given.minutes)
    print(table_of(out))


if __name__ == "__main__":
    main()
