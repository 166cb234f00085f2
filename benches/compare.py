#!/usr/bin/env python3
"""Prefill of this engine beside llama.cpp, OpenVINO, ONNX Runtime and candle, on the same shapes, in turns; prints a table.

    LLAMA_BENCH="path/to/llama-bench" benches/compare.py

LLAMA_BENCH is the command that starts llama-bench (a Debian package llama.cpp-tools has it); LLAMA_BACKENDS the folder of its
`libggml-cpu-*.so`, found beside it if not given. Without LLAMA_BENCH llama.cpp is left out. OpenVINO and ONNX Runtime come from
PyPI into `.cache/compare-venv`; without them they are left out. Measurements are kept in `--results` as they are made: a run
that was stopped goes on where it was, and `--table` prints what is there. `--again` measures anew.

Every engine is measured at its best of several settings (backend, batch, number format), found by trying each first; the
chosen ones then run in turns, ROUNDS times, and medians count.
"""

import argparse
import glob
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"
VENV = CACHE / "compare-venv"
PACKAGES = ["openvino", "onnxruntime", "onnx", "numpy"]
PROMPTS, PROMPT_TOKENS = 32, 128
PREFIX_TOKENS, OWN_TOKENS = 160, 96
# candle takes one prompt at a time: fewer of them show the same speed.
CANDLE_PROMPTS = {"10M": 8, "135M": 2, "0.5B": 1}
# llama.cpp's backends by what the processor has, and the level of ours that each is held to.
BACKENDS = [
    ("sapphirerapids", "amx_int8", "amx"),
    ("zen4", "avx512_bf16", "avx512vnni"),
    ("icelake", "avx512_vnni", "avx512vnni"),
    ("alderlake", "avx_vnni", "avxvnni"),
    ("haswell", "avx2", "avx2"),
]
LEVELS = ["amx", "avx512vnni", "avxvnni", "avx2", "portable"]


class Unavailable(Exception):
    pass


class Worker:
    """A process that answers each line with the seconds of one run."""

    def __init__(self, command, tokens, environment=None):
        self.tokens = tokens
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        line = self.process.stdout.readline().strip()
        if line != "ready":
            self.close()
            raise Unavailable(line or f"exit status {self.process.returncode}")
        self.pause()

    def pause(self):
        """Some engines' threads spin after a run, in the time of the next one."""
        self.process.send_signal(signal.SIGSTOP)

    def speed(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        self.pause()
        if not line:
            raise Unavailable("the worker stopped")
        return self.tokens / float(line)

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


class LlamaBench:
    """One start of llama-bench per measurement; its own warm-up run is not counted."""

    def __init__(self, llama, path, threads, backend, repack, flash, prompt, depth):
        self.environment = {"GGML_BACKEND_PATH": str(llama.backends / f"libggml-cpu-{backend}.so")}
        repetitions = max(1, (8 if "10M" in str(path) else 2) * PROMPT_TOKENS // prompt)
        self.command = llama.command + shlex.split(
            f"-m {shlex.quote(str(path))} -n 0 -t {threads} -p {prompt} -d {depth} -b 4096 -ub 2048"
            f" --repack {repack} -fa {flash} -r {repetitions} -o jsonl"
        )

    def speed(self):
        done = subprocess.run(self.command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or not lines:
            raise Unavailable(f"llama-bench: {done.stderr.strip()[-300:]}")
        return statistics.median(json.loads(lines[0])["samples_ts"])

    def close(self):
        pass


class Llama:
    def __init__(self, command, backends):
        self.command, self.backends = command, backends

    @classmethod
    def find(cls):
        command = shlex.split(os.environ.get("LLAMA_BENCH", ""))
        if not command:
            return None
        folder = os.environ.get("LLAMA_BACKENDS")
        if not folder:
            beside = Path(command[0]).resolve().parent
            found = glob.glob(f"{beside}/**/libggml-cpu-haswell.so", recursive=True)
            if not found:
                sys.exit(f"no libggml-cpu-*.so below {beside}: set LLAMA_BACKENDS")
            folder = Path(found[0]).parent
        return cls(command, Path(folder).resolve())


def processor_flags():
    text = Path("/proc/cpuinfo").read_text()
    return set(re.search(r"^flags\s*:(.*)$", text, re.MULTILINE).group(1).split())


def python():
    """The Python that has the packages, installed on first use; `None` if they cannot be had."""
    path = VENV / "bin/python"
    try:
        if not path.exists():
            subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        have = subprocess.run([path, "-c", f"import {', '.join(PACKAGES)}"], capture_output=True).returncode == 0
        if not have:
            subprocess.run([path, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        return str(path)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"OpenVINO and ONNX Runtime are left out: {error}", file=sys.stderr)
        return None


def build():
    """The Rust program."""
    command = ["cargo", "bench", "-p", "trafficllm-benches", "--bench", "prefill", "--no-run", "--message-format", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "prefill")


class Setting:
    """What is measured together: a shape, a format, a number of threads, a case."""

    def __init__(self, run, shape, form, threads, case):
        self.run, self.shape, self.form, self.threads, self.case = run, shape, form, threads, case
        self.name = f"{shape['name']} {form} {threads} {case}"
        self.prefix = case == "shared-prefix"
        self.tokens = PROMPTS * (OWN_TOKENS if self.prefix else PROMPT_TOKENS)

    def path(self):
        arguments = [self.run.program, "model", "--shape", self.shape["name"], "--format", self.form]
        return subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    def rust(self, engine, case, *more, tokens=None, **environment):
        arguments = ["worker", "--engine", engine, "--shape", self.shape["name"], "--format", self.form]
        command = [self.run.program, *arguments, "--case", case, "--threads", str(self.threads), *more]
        return lambda: Worker(command, tokens or self.tokens, environment)

    def own(self):
        """This engine: every level the processor has."""
        for level in self.run.own_levels:
            if level == "portable" and self.shape["name"] != "10M":
                continue
            yield f"own {level}", [(level, self.rust("own", self.case, "--level", level))]
        fastest = self.run.own_levels[0]
        other = "whole-prefix" if self.prefix else "all-rows"
        yield f"own {fastest}, {other}", [(fastest, self.rust("own", other, "--level", fastest))]

    def llama(self):
        """llama.cpp: at its best, and at its best of each lower level."""
        if not self.run.llama:
            return
        prompts = [(OWN_TOKENS, PREFIX_TOKENS)] if self.prefix else [(128, 0), (512, 0)]
        variants = {}
        for backend, flag, level in BACKENDS:
            # Flash attention stays on `auto`: turning it off was slower at every length that was tried.
            if flag in self.run.flags:
                variants[level] = [
                    (
                        f"{backend}, repack {repack}, -p {prompt}" + (f" -d {depth}" if depth else ""),
                        lambda b=backend, r=repack, p=prompt, d=depth: LlamaBench(
                            self.run.llama, self.path(), self.threads, b, r, "auto", p, d
                        ),
                    )
                    for repack in (1, 0)
                    for prompt, depth in prompts
                ] + variants.get(level, [])
        for level, choices in variants.items():
            yield f"llama.cpp {level}", choices

    def candle(self):
        prompts = CANDLE_PROMPTS[self.shape["name"]]
        tokens = self.tokens // PROMPTS * prompts
        start = self.rust("candle", self.case, "--prompts", str(prompts), tokens=tokens, RAYON_NUM_THREADS=str(self.threads))
        yield "candle", [("one prompt at a time", start)]

    def python(self):
        # Formats mean nothing to them: they have their own int8.
        if not self.run.python or self.form != "q8_0" or self.prefix:
            return
        worker = str(REPOSITORY / "benches/compare/worker.py")

        def choice(engine, batch):
            command = [self.run.python, worker, engine, json.dumps(self.shape), self.threads, batch, PROMPTS, PROMPT_TOKENS]
            return f"{engine}, batches of {batch}", lambda: Worker(list(map(str, command)), self.tokens)

        engines = ["openvino-int8", "openvino-weights8", "openvino-bf16"]
        yield "OpenVINO", [choice(engine, batch) for engine in engines for batch in (8, 32)]
        yield "ONNX Runtime", [choice("onnxruntime-int8", batch) for batch in (8, 32)]

    def contenders(self):
        wanted = self.run.arguments.engines
        sources = {"own": self.own, "llama": self.llama, "candle": self.candle, "python": self.python}
        return [contender for name, source in sources.items() if name in wanted for contender in source()]

    def best(self, name, choices):
        """The fastest of an engine's settings, started; the others are stopped."""
        tried = []
        # Large shapes run for seconds: once tells enough.
        runs = 3 if self.shape["name"] == "10M" else 1
        for label, start in choices:
            try:
                runner = start()
                if len(choices) == 1:
                    return name, label, runner
                speed = statistics.median(runner.speed() for _ in range(runs))
            except Unavailable as error:
                print(f"  {name} ({label}): left out: {error}", flush=True)
                continue
            print(f"  tried {name} ({label}): {speed:.0f} tokens/s", flush=True)
            runner.close()
            tried.append((speed, label, start))
        if not tried:
            return None
        _, label, start = max(tried, key=lambda entry: entry[0])
        return name, label, start()

    def measure(self):
        print(f"{self.name}:", flush=True)
        found = [self.best(name, choices) for name, choices in self.contenders()]
        running = [entry for entry in found if entry]
        speeds = {name: [] for name, _, _ in running}
        for _ in range(self.run.arguments.rounds):
            for name, _, runner in running:
                speeds[name].append(runner.speed())
        for name, label, runner in running:
            runner.close()
            self.run.keep(self.name, name, label, speeds[name])


class Run:
    def __init__(self, arguments):
        self.arguments = arguments
        self.results = {}
        if arguments.results.exists():
            for line in arguments.results.read_text().splitlines():
                entry = json.loads(line)
                self.results.setdefault(entry["setting"], {})[entry["engine"]] = entry

    def prepare(self):
        self.program = self.arguments.program or build()
        self.python = python() if "python" in self.arguments.engines else None
        self.llama = Llama.find() if "llama" in self.arguments.engines else None
        self.flags = processor_flags()
        ask = lambda command: subprocess.run([self.program, command], stdout=subprocess.PIPE, text=True, check=True).stdout
        levels = ask("levels").split()
        self.own_levels = [level for level in levels if level in (self.arguments.levels or levels[:-1] or levels)]
        self.shapes = {shape["name"]: shape for shape in map(json.loads, ask("shapes").splitlines())}

    def keep(self, setting, engine, label, speeds):
        entry = {"setting": setting, "engine": engine, "label": label, "speeds": speeds}
        entry["median"] = statistics.median(speeds)
        self.results.setdefault(setting, {})[engine] = entry
        print(f"  {engine} ({label}): {entry['median']:.0f} tokens/s", flush=True)
        with self.arguments.results.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def measure(self):
        self.prepare()
        for name in self.arguments.shapes:
            for form in self.arguments.formats:
                for threads in self.arguments.threads:
                    for case in self.arguments.cases:
                        setting = Setting(self, self.shapes[name], form, threads, case)
                        if self.arguments.again or setting.name not in self.results:
                            setting.measure()

    def table(self):
        """Markdown: tokens per second and how many times as fast ours is."""
        lines = ["| shape, format, threads, case | engine | setting | tokens/s | lowest to highest | own / this |", "|---|---|---|---|---|---|"]
        for setting, entries in self.results.items():
            own = {name.split()[1]: entry["median"] for name, entry in entries.items() if name.startswith("own ") and "," not in name}
            fastest = next((own[level] for level in LEVELS if level in own), None)
            for name, entry in entries.items():
                level = name.split()[1] if name.startswith("llama.cpp") else None
                reference = own.get(level, fastest)
                at = f" ({level})" if level in own else ""
                ratio = f"{reference / entry['median']:.2f}{at}" if reference and not name.startswith("own ") else ""
                low, high = min(entry["speeds"]), max(entry["speeds"])
                lines.append(
                    f"| {setting} | {name} | {entry['label']} | {entry['median']:.0f} | {low:.0f} to {high:.0f} | {ratio} |"
                )
        return "\n".join(lines)

    def summary(self):
        """Markdown: our best level's tokens per second, and how many times that of the others; llama.cpp's is of the same level each."""
        levels = [level for level in LEVELS if any(f"own {level}" in entries for entries in self.results.values())]
        others = ["candle", "OpenVINO", "ONNX Runtime"]
        head = ["shape, format, threads, case", "tokens/s"] + [f"/ llama.cpp, {level}" for level in levels] + [f"/ {name}" for name in others]
        lines = [head, ["---"] * len(head)]
        for setting, entries in self.results.items():
            own = {level: entries[f"own {level}"]["median"] for level in levels if f"own {level}" in entries}
            best = next(iter(own.values()), None)
            ratio = lambda mine, name: f"{mine / entries[name]['median']:.1f}" if mine and name in entries else "-"
            cells = [ratio(own.get(level), f"llama.cpp {level}") for level in levels] + [ratio(best, name) for name in others]
            lines.append([setting, f"{best:,.0f}" if best else "-"] + cells)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")
    parser.add_argument("--shapes", type=words, default=["10M", "135M", "0.5B"], metavar="10M,135M,0.5B")
    parser.add_argument("--formats", type=words, default=["q8_0", "q4_0"], metavar="q8_0,q4_0")
    parser.add_argument("--threads", type=lambda text: list(map(int, words(text))), default=[1, 2], metavar="1,2")
    parser.add_argument("--cases", type=words, default=["prompts", "shared-prefix"], metavar="prompts,shared-prefix")
    parser.add_argument("--engines", type=words, default=["own", "llama", "candle", "python"], metavar="own,llama,candle,python")
    parser.add_argument("--levels", type=words, help="levels of ours; all but portable, if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=CACHE / "compare.jsonl")
    parser.add_argument("--program", help="the built bench `prefill`; built by cargo if not given")
    parser.add_argument("--again", action="store_true", help="measure what is in the results already")
    parser.add_argument("--table", action="store_true", help="only print the table of what is in the results")
    return parser.parse_args()


def main():
    run = Run(arguments())
    CACHE.mkdir(exist_ok=True)
    if not run.arguments.table:
        run.measure()
    print(run.table())
    print()
    print(run.summary())


if __name__ == "__main__":
    main()
