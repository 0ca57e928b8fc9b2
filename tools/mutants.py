"""Mutation testing: small changes of the code, each of which some test should notice.

`make mutants` changes the crate as cargo-mutants proposes, `make mutants-python` the package as
Cosmic Ray proposes. This program runs the tests. A mutant's result is a line of
target/mutants/LANGUAGE.jsonl as soon as it is known. Mutants with a result are skipped, so a run
can be stopped and started again. docs/trust.md explains the score.

Compiling is what costs time in Rust. So a batch of mutants is compiled once: each changed function
holds the bodies of its mutants, and the environment variable XENTRS_MUTANT chooses one for the
process. A run of the tests without a mutant must pass. It records which mutants each stage of the
tests reaches, and a mutant runs in those stages alone.
"""

import argparse
import ast
import collections
import contextlib
import fnmatch
import functools
import hashlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "target/mutants"
CRATE = FOLDER / "crate"
RUST_PACKAGE = FOLDER / "package-rust"
COMPILED = FOLDER / "compiled.json"  # the batch whose crate is compiled, and what stages reach
MODULE = "_xentrs.abi3.so"

# What does not run at AVX2 on Linux, and what needs PyTorch or other libraries than NumPy.
EXCLUDED = {
    "rust": ["src/simd/avx512.rs", "src/simd/neon.rs", "src/simd/portable.rs", "src/**/tests.rs"],
    "python": [
        *("python/xentrs/torch/*", "python/xentrs/_cli/*", "python/xentrs/__main__.py"),
        *(f"python/xentrs/{name}.py" for name in ("catboost", "dask", "lightgbm", "xgboost")),
    ],
}

# Drawn and left out: what only other libraries call (PyTorch, XGBoost); below, what changes speed.
NEEDS_OTHERS = ["src/python/tensors.rs", "python/xentrs/_objectives.py"]
PREFETCH = re.compile(r"\bprefetch\w*\(")

# Operators replace each other within a family. `x << y` in place of `x * y` or `x is y` of `x <= y`
# is an error at once, which proves nothing of the tests.
FAMILIES = [
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"},
    {"RShift", "LShift", "BitOr", "BitAnd", "BitXor"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
    {"USub", "UAdd", "Delete"},
    {"Not", "Delete"},
]

# Stages of the tests, in the order in which they run: quick ones that notice much come first. Of
# long ones a share of the cases runs. Left out are the exhaustive, the slow and those of other
# libraries.
CRATE_TESTS = "tests of the crate"
FIRST = ["test_recorded_bits.py --every-group 7", "test_errors.py", "test_known_values.py"]
THEN = [
    *("test_edge_cases.py", "test_linear_cross_entropy.py", "test_divergence.py"),
    *("test_partial.py", "test_summaries.py", "test_wide_values.py", "test_sparse_target.py"),
    *("test_what_counts.py", "test_functions.py", "test_layouts.py --every 3"),
    *("test_meter.py", "test_half.py --every 5", "test_laws.py --every 7"),
    *("test_recorded_bits.py", "test_list_of_losses.py"),
]
STAGES = {
    "rust": [*FIRST, CRATE_TESTS, *THEN],
    "python": [*FIRST, *THEN, "test_docstrings.py"],
}

# AVX2 alone. A mutant that the compiler only warns of is a mutant.
RUSTFLAGS = '--cfg xentrs_without="avx512" --cfg xentrs_without="portable" --cap-lints warn'
BUILD = {
    f"CARGO_PROFILE_{profile}_{option}": value
    for profile in ("RELEASE", "TEST")
    for option, value in {
        "OPT_LEVEL": "1",
        "LTO": "off",
        "CODEGEN_UNITS": "256",
        "INCREMENTAL": "true",
        "STRIP": "none",
    }.items()
}

# The part of the scratch crate that says which mutant runs; "reach" records what a run reaches.
SWITCH = """//! Which mutant this process runs.
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static RUNS: LazyLock<usize> = LazyLock::new(|| match std::env::var("XENTRS_MUTANT") {
    Ok(text) if text == "reach" => usize::MAX,
    Ok(text) => text.parse().unwrap(),
    Err(_) => 0,
});
static REACHED: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];

#[inline(always)]
pub fn runs(mutant: usize) -> bool {
    let runs = *RUNS;
    if runs == usize::MAX {
        reach(mutant);
    }
    runs == mutant
}

#[cold]
#[inline(never)]
fn reach(mutant: usize) {
    if !REACHED[mutant].swap(true, Relaxed) {
        let path = std::env::var_os("XENTRS_REACHED").unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{mutant}\\n").as_bytes()).unwrap();
    }
}
"""


class Text:
    """A source file, addressed by lines and columns that count from 1."""

    def __init__(self, text):
        self.text = text
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def at(self, place):
        return self.starts[place["line"] - 1] + place["column"] - 1

    def span(self, span):
        return self.at(span["start"]), self.at(span["end"])


# --- the stages of the tests ---------------------------------------------------------------------


def limits():
    """Keep a mutant that allocates without end, or crashes, from filling memory and disk."""
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_stage(stage, environment, timeout, package, *, binary=None, before=()):
    """Run a stage; return None if it passed, else what failed, and the time that it took."""
    if stage == CRATE_TESTS:
        command = [str(binary), "--test-threads", "2", "-q"]
    else:
        options = ["-q", "-x", "-p", "no:cacheprovider", "--tb=no", "--no-header"]
        command = [sys.executable, *before, "-m", "pytest", *options, *f"tests/{stage}".split()]
    environment = os.environ | {"PYTHONPATH": str(package), "XENTRS_SIMD": "avx2"} | environment
    log = package / "output.txt"
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limits,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    failed = None
    if code != 0:
        named = re.findall(
            r"^(?:FAILED|ERROR) (\S+)|^    (\S+)$", log.read_text(errors="replace"), re.M
        )
        failed = f"{stage}: " + (next(filter(None, named[0])) if named else f"ended with {code}")
    return failed, time.monotonic() - begin


def outcome(stages, seconds, environment, package, **options):
    """Run stages until one fails; return the fields of a result."""
    begin, failed = time.monotonic(), None
    for stage in stages:
        failed, _ = run_stage(stage, environment, 30 + 5 * seconds[stage], package, **options)
        if failed:
            break
    result = {"outcome": "killed" if failed else "survived", "by": failed}
    return result | {"seconds": round(time.monotonic() - begin, 1)}


def run_without(stage, environment, package, **options):
    """Run a stage without a mutant; return the seconds that it took."""
    failed, seconds = run_stage(stage, environment, None, package, **options)
    if failed:
        sys.exit(f"fails without a mutant: {failed}; see {package / 'output.txt'}")
    print(f"  {seconds:6.1f} s  {stage}", flush=True)
    return seconds


# --- Rust ----------------------------------------------------------------------------------------


def rust_mutants():
    excluded = [argument for glob in EXCLUDED["rust"] for argument in ("--exclude", glob)]
    command = ["cargo", "mutants", "--list", "--json", "--file", "src/**", *excluded]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(listed)


TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|r\#*".*?"\#*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|\w+|.""", re.S
)


def body_of(text, start, end):
    """Return where the body of a function begins, after its brace, and the function's signature."""
    seen_fn, depth = False, 0
    for token in TOKEN.finditer(text, start, end):
        token, at = token[0], token.start()
        if token == "fn" and not depth:
            seen_fn = at
        depth += (token in "([") - (token in ")]") if len(token) == 1 else 0
        if seen_fn and token == "{" and not depth:
            return at + 1, text[start:at]
    raise ValueError(text[start:end])


def switchable(texts, mutant):
    """Whether the mutant can be one of several bodies of its function."""
    if not mutant["function"]:
        return False
    text = texts[mutant["file"]]
    start, end = text.span(mutant["function"]["span"])
    _, signature = body_of(text.text, start, end)
    signature = signature[re.search(r"(?m)^[^/#\n]*\bfn\b", signature).start() :]
    # Bodies of a function that returns `impl Trait` differ in type.
    return not re.search(r"\bconst\b[^(]*\bfn\b|->.*\bimpl\b", signature, re.S)


def batches(mutants, texts, size):
    """Yield the mutants in groups that one crate can hold."""
    alone = [mutant for mutant in mutants if not switchable(texts, mutant)]
    rest = [mutant for mutant in mutants if switchable(texts, mutant)]
    while rest:
        batch, left, spans = [], [], collections.defaultdict(set)
        for mutant in rest:
            span = texts[mutant["file"]].span(mutant["function"]["span"])
            nested = any(
                other != span and other[0] < span[1] and span[0] < other[1]
                for other in spans[mutant["file"]]
            )
            if len(batch) < size and not nested:
                batch.append(mutant)
                spans[mutant["file"]].add(span)
            else:
                left.append(mutant)
        yield batch
        rest = left
    yield from ([mutant] for mutant in alone)


def changed(text, mutant):
    """Return the text of a file with one mutant."""
    start, end = text.span(mutant["span"])
    return f"{text.text[:start]}{mutant['replacement']} {text.text[end:]}"


def write_crate(texts, batch, *, alone):
    """Write the scratch crate with the mutants of a batch, the first of which has the number 1."""
    functions = collections.defaultdict(list)
    for number, mutant in enumerate(batch, 1):
        span = texts[mutant["file"]].span((mutant["function"] or mutant)["span"])
        functions[mutant["file"], span].append((number, mutant))
    written = {name: text.text for name, text in texts.items()}
    for (name, (start, end)), mutants in sorted(functions.items(), reverse=True):
        text = texts[name]
        if alone:
            written[name] = changed(text, mutants[0][1])
            continue
        begin, _ = body_of(text.text, start, end)
        bodies = ""
        for number, mutant in mutants:
            mutated = changed(text, mutant)
            body = mutated[begin : len(mutated) - (len(text.text) - end) - 1]
            # The compiler's warning that the variable is not used tells that it compiled this.
            bodies += f"if crate::mutants::runs({number}) {{ let mutant_{number} = ();\n"
            bodies += f"/*mutant {number}*/{body}/*end*/\n}} else "
        original = text.text[begin : end - 1]
        written[name] = f"{written[name][:begin]} {bodies}{{{original}}} {written[name][end - 1 :]}"
    written["src/lib.rs"] += "\n#[allow(missing_docs, dead_code)]\npub mod mutants;\n"
    written["src/mutants.rs"] = SWITCH.replace("COUNT", str(len(batch) + 1))
    for name, content in written.items():
        path = CRATE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)


def cargo(*arguments):
    """Run cargo on the scratch crate; return its exit code and the compiler's messages."""
    environment = os.environ | BUILD | {"RUSTFLAGS": RUSTFLAGS}
    command = ["cargo", arguments[0], "--locked", "--message-format", "json", *arguments[1:]]
    command += ["--target-dir", str(FOLDER / "build")]
    done = subprocess.run(command, cwd=CRATE, env=environment, capture_output=True, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def blamed(messages):
    """Return the numbers of the mutants with errors, and of those that were compiled."""
    wrong, compiled = set(), set()
    for message in messages:
        if message["reason"] != "compiler-message":
            continue
        message = message["message"]
        compiled |= {
            int(n) for n in re.findall(r"unused variable: `mutant_(\d+)`", message["message"])
        }
        if message["level"] != "error":
            continue
        for span in message["spans"]:
            if not (CRATE / span["file_name"]).exists():
                continue
            lines = (CRATE / span["file_name"]).read_text().splitlines()
            before = "\n".join(lines[: span["line_start"]])
            marks = re.findall(r"/\*mutant (\d+)\*/|/\*(end)\*/", before)
            if marks and marks[-1][0]:
                wrong.add(int(marks[-1][0]))
    return wrong, compiled


def run_rust(mutants, keep, size):
    texts = {
        str(path.relative_to(ROOT)): Text(path.read_text()) for path in (ROOT / "src").rglob("*.rs")
    }
    if COMPILED.exists():  # of the run before
        compiled = json.loads(COMPILED.read_text())
        if compiled["sources"] == digest("src/**/*.rs"):
            rest = [mutant for mutant in mutants if mutant["name"] in compiled["names"]]
            mutants = [mutant for mutant in mutants if mutant not in rest]
            run_compiled(rest, keep)
    if not mutants:
        return
    COMPILED.unlink(missing_ok=True)
    shutil.rmtree(CRATE, ignore_errors=True)
    CRATE.mkdir(parents=True)
    for name in ("Cargo.toml", "Cargo.lock", "README.md", "benches", "tests"):
        (CRATE / name).symlink_to(ROOT / name)
    copy_package(RUST_PACKAGE)
    for batch in batches(mutants, texts, size):
        if switchable(texts, batch[0]):
            run_batch(batch, texts, keep)
        else:
            run_alone(batch[0], texts, keep)


def checked(batch, texts, keep):
    """Return the mutants of a batch that compile; the others get their result."""
    while batch:
        write_crate(texts, batch, alone=False)
        code, messages, errors = cargo("check", "--release")
        wrong, compiled = blamed(messages)
        if code == 0:
            for number, mutant in enumerate(batch, 1):
                if number not in compiled:
                    keep(mutant, {"outcome": "not compiled", "by": "another target or feature"})
            return [mutant for number, mutant in enumerate(batch, 1) if number in compiled]
        if not wrong:
            sys.exit(f"errors that belong to no mutant:\n{errors[-3000:]}")
        for number in wrong:
            mutant = batch[number - 1]
            run_alone(mutant, texts, keep)  # the switch may be the reason
        batch = [mutant for number, mutant in enumerate(batch, 1) if number not in wrong]
    return batch


def digest(*patterns):
    """Return a digest of all files of the repository that match."""
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def digest_of_stage(stage):
    return digest(
        "tests/[!t]*.py", "src/**/*.rs" if stage == CRATE_TESTS else f"tests/{stage.split()[0]}"
    )


def compile_crate():
    """Compile the scratch crate; return the binary of its tests, or None and the errors."""
    code, messages, errors = cargo("build", "--release")
    if not code:
        shutil.copy(FOLDER / "build/release/libxentrs.so", RUST_PACKAGE / "xentrs" / MODULE)
        code, messages, errors = cargo("test", "--no-default-features", "--lib", "--no-run")
    binaries = [message["executable"] for message in messages if message.get("executable")]
    return (None, errors) if code else (binaries[-1], "")


def run_alone(mutant, texts, keep):
    """Compile one mutant without a switch, and run the tests."""
    COMPILED.unlink(missing_ok=True)
    write_crate(texts, [mutant], alone=True)
    binary, _ = compile_crate()
    if binary:
        seconds = dict.fromkeys(STAGES["rust"], 60)
        keep(mutant, outcome(STAGES["rust"], seconds, {}, RUST_PACKAGE, binary=binary))
    else:
        keep(mutant, {"outcome": "unviable", "by": "the compiler"})


def run_batch(batch, texts, keep):
    """Compile a batch, and run the tests for each of its mutants."""
    begin = time.monotonic()
    batch = checked(batch, texts, keep)
    if not batch:
        return
    write_crate(texts, batch, alone=False)
    binary, errors = compile_crate()
    if not binary:
        sys.exit(errors[-3000:])
    print(f"{len(batch)} mutants compiled in {time.monotonic() - begin:.0f} s", flush=True)
    compiled = {"sources": digest("src/**/*.rs"), "binary": binary, "stages": {}}
    compiled["names"] = [mutant["name"] for mutant in batch]
    COMPILED.write_text(json.dumps(compiled))
    run_compiled(batch, keep)


def run_compiled(mutants, keep):
    """Run the tests for some mutants of the batch that is compiled."""
    compiled = json.loads(COMPILED.read_text())
    binary, known = compiled["binary"], compiled["stages"]
    for stage in STAGES["rust"]:
        if known.get(stage, {}).get("digest") != digest_of_stage(stage):
            log = FOLDER / "reached.txt"
            log.write_text("")
            environment = {"XENTRS_MUTANT": "reach", "XENTRS_REACHED": str(log)}
            seconds = run_without(stage, environment, RUST_PACKAGE, binary=binary)
            reached = sorted({*map(int, log.read_text().split())})
            known[stage] = {
                "digest": digest_of_stage(stage),
                "seconds": seconds,
                "reached": reached,
            }
            COMPILED.write_text(json.dumps(compiled))
    seconds = {stage: known[stage]["seconds"] for stage in STAGES["rust"]}
    for mutant in mutants:
        number = compiled["names"].index(mutant["name"]) + 1
        stages = [stage for stage in STAGES["rust"] if number in known[stage]["reached"]]
        environment = {"XENTRS_MUTANT": str(number)}
        result = outcome(stages, seconds, environment, RUST_PACKAGE, binary=binary)
        if not stages:
            result["by"] = "no test reaches it"
        keep(mutant, result)


# --- Python --------------------------------------------------------------------------------------


def copy_package(package):
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python/xentrs", package / "xentrs")


def without_effect(source):
    """Return where annotations and imports for types stand: a change there changes no call."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            part = getattr(node, field, None)
            if part is not None:
                spans.append(
                    ((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset))
                )
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            spans.append(((node.lineno, 0), (node.end_lineno, node.end_col_offset)))
    return spans


def sensible(operator):
    """Whether an operator of Cosmic Ray puts one in the place of another that it can stand for."""
    if not re.match("Replace(Binary|Unary|Comparison)Operator_", operator):
        return True
    pair = {*operator.split("_")[1:]}
    return any(pair <= family for family in FAMILIES)


def python_mutants():
    from cosmic_ray.commands.init import _all_work_items

    mutants = []
    for path in sorted((ROOT / "python/xentrs").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if any(fnmatch.fnmatch(name, glob) for glob in EXCLUDED["python"]):
            continue
        skipped = without_effect(path.read_text())
        for item in _all_work_items([path], {}):
            (mutation,) = item.mutations
            if any(start <= mutation.start_pos < end for start, end in skipped):
                continue
            operator = mutation.operator_name.removeprefix("core/")
            if not sensible(operator):
                continue
            line, column = mutation.start_pos
            mutants.append(
                {
                    "name": f"{name}:{line}:{column + 1}: {operator} {mutation.occurrence}",
                    "file": name,
                    "operator": mutation.operator_name,
                    "occurrence": mutation.occurrence,
                    "lines": [line, mutation.end_pos[0]],
                }
            )
    return mutants


def statement(source, lines):
    """Return the lines of the statement of a mutant; those of its head, if it has a body."""
    best = lines
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= lines[0] <= node.end_lineno:
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            if last >= lines[0]:
                best = [node.lineno, last]  # inner statements come later
    return {*range(best[0], best[1] + 1)}


def reached_lines(package):
    """Return the lines that each stage of the tests executes, and its seconds."""
    import coverage

    current = digest("python/**/*.py", "tests/*.py") + str(STAGES["python"])
    cache = FOLDER / "reached.json"
    if cache.exists():
        kept = json.loads(cache.read_text())
        if kept["digest"] == current:
            return kept["lines"], kept["seconds"]
    lines, seconds = {}, {}
    data = FOLDER / "coverage"
    for stage in STAGES["python"]:
        data.unlink(missing_ok=True)
        before = ["-m", "coverage", "run", f"--data-file={data}", f"--source={package}"]
        seconds[stage] = run_without(stage, {}, package, before=before)
        measured = coverage.CoverageData(str(data))
        measured.read()
        lines[stage] = {
            f"python/{Path(file).relative_to(package)}": measured.lines(file)
            for file in measured.measured_files()
        }
    cache.write_text(json.dumps({"digest": current, "lines": lines, "seconds": seconds}))
    return lines, seconds


def run_python(mutants, keep, module):
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    package = FOLDER / "package-python"
    copy_package(package)
    shutil.copy(module, package / "xentrs" / MODULE)
    lines, seconds = reached_lines(package)
    for mutant in mutants:
        path = package / Path(mutant["file"]).relative_to("python")
        source = (ROOT / mutant["file"]).read_text()
        operator = cosmic_ray.plugins.get_operator(mutant["operator"])()
        mutated = mutate_code(source, operator, mutant["occurrence"])
        try:
            compile(mutated, mutant["file"], "exec")
        except SyntaxError:  # for instance `**` in place of the `*` before keywords
            keep(mutant, {"outcome": "unviable", "by": "the parser"})
            continue
        where = statement(source, mutant["lines"])
        stages = [
            stage for stage in STAGES["python"] if where & {*lines[stage].get(mutant["file"], ())}
        ]
        path.write_text(mutated)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()  # its date and size could be those of the mutant
        topics = {stage: stage.split(".")[0].removeprefix("test_") for stage in stages}
        stages.sort(key=lambda stage: topics[stage] not in mutant["file"])
        result = outcome(stages, seconds, {}, package)
        path.write_text(source)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        if not stages:
            result["by"] = "no test reaches it, unless in another process"
        change = [
            f"{mark} {line.strip()}"
            for mark, one, other in (("-", source, mutated), ("+", mutated, source))
            for line in one.splitlines()
            if line not in other.splitlines()
        ]
        keep(mutant, result | {"change": change})


@functools.cache
def overloads(source):
    """Return the lines of the signatures that type checkers alone read."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return {
        line
        for node in functions
        if "overload" in map(ast.unparse, node.decorator_list)
        for line in range(node.decorator_list[0].lineno, node.end_lineno + 1)
    }


def left_out(mutant):
    """Whether a mutant of the sample is not run."""
    if mutant["file"] in NEEDS_OTHERS:
        return True
    lines = (ROOT / mutant["file"]).read_text().splitlines()
    if "operator" in mutant:  # of Python
        return mutant["lines"][0] in overloads("\n".join(lines))
    place = mutant["span"]["start"]
    if mutant["genre"] == "FnValue":
        return False
    line = lines[place["line"] - 1]
    return bool(PREFETCH.search(line[: place["column"]]))


# --- both ----------------------------------------------------------------------------------------


def print_score(results):
    counts = collections.Counter(result["outcome"] for result in results)
    killed, tested = counts["killed"], counts["killed"] + counts["survived"]
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    if tested:
        print(f"score: {killed} of {tested} killed, {100 * killed / tested:.1f} %")
    for result in results:
        if result["outcome"] == "survived":
            print(f"survived: {result['name']}  {result['by'] or ''}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=["mutants", "mutants-python"], help="of make")
    parser.add_argument(
        "--files", default="*", help="only files whose path matches, as src/softmax/*"
    )
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the sample, and of the order in which mutants run"
    )
    parser.add_argument("--shard", default="1/1", help="K/N: of N equal parts the K-th")
    parser.add_argument(
        "--batch", type=int, default=60, help="mutants of Rust that are compiled together"
    )
    parser.add_argument("--module", help="the compiled module; else that of the installed package")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    parser.add_argument(
        "--list",
        action="store_true",
        help="run nothing; print the mutants, or with results the score",
    )
    options = parser.parse_args()
    language = {"mutants": "rust", "mutants-python": "python"}[options.target]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # ends the tests that run, too

    mutants = {"rust": rust_mutants, "python": python_mutants}[language]()
    mutants = [mutant for mutant in mutants if fnmatch.fnmatch(mutant["file"], options.files)]
    random.Random(options.seed).shuffle(mutants)
    part, parts = map(int, options.shard.split("/"))
    mutants = mutants[: options.sample][part - 1 :: parts]
    mutants = [mutant for mutant in mutants if not left_out(mutant)]

    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{language}.jsonl"
    results = {}
    if file.exists():
        results = {line["name"]: line for line in map(json.loads, file.read_text().splitlines())}

    def keep(mutant, result):
        results[mutant["name"]] = {"name": mutant["name"], **result}
        with file.open("a") as lines:
            print(json.dumps(results[mutant["name"]]), file=lines)
        print(f"{result['outcome']:9} {mutant['name']}  ({result['by']})", flush=True)

    def has_result(mutant):
        result = results.get(mutant["name"])
        return result and not (options.again and result["outcome"] == "survived")

    todo = [mutant for mutant in mutants if not has_result(mutant)]
    print(f"{len(mutants)} mutants, {len(todo)} without a result", flush=True)
    if options.list:
        print("\n".join(mutant["name"] for mutant in todo))
    elif language == "rust":
        run_rust(todo, keep, options.batch)
    else:
        installed = importlib.util.find_spec("xentrs")
        module = options.module or Path(installed.origin).with_name(MODULE)
        run_python(todo, keep, module)
    print_score([results[mutant["name"]] for mutant in mutants if mutant["name"] in results])


if __name__ == "__main__":
    main()
