"""Rules of the layout: folders, sizes of files, directions of imports, and where each test lies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.version import Version

from tests.meta.source import OURS, Source, imported_names, report

MAX_ENTRIES = {"training": 11}  # five of them are commands; every other folder has at most ten
MIN_FILE_LINES, MAX_FILE_LINES = 70, 450
MIRRORED_FILE_LINES = 80  # larger files have a test file of their own
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
UNRUN = "app/engine/cuda/__init__.py"  # the only folder with code that no machine has run yet

# A unit is a file or folder of a package. For each: the units of its own package that it may
# import, the units of `deltas` if it is in another package, and the third parties.
DIRECTION = {
    "app": ("", "", ""),
    "app.__main__": ("server process keys", "kernels", ""),
    "app.server": (
        "main http process errors",
        "backbone errors hardware",
        "fastapi httptools starlette uvicorn",
    ),
    "app.main": (
        "http keys pipeline batching engine process errors",
        "backbone store hardware errors",
        "fastapi starlette",
    ),
    "app.http": (
        "keys pipeline batching engine process errors",
        "store publish manifest errors",
        "fastapi opentelemetry prometheus_client pydantic pydantic_core starlette",
    ),
    "app.keys": ("errors", "errors", "pydantic pyrate_limiter starlette tomlkit"),
    "app.pipeline": (
        "batching engine errors",
        "backbone store format hardware manifest errors",
        "anyio pyarrow pydantic ray tqdm",
    ),
    "app.batching": ("errors", "", ""),
    "app.engine": (
        "errors",
        "backbone delta encoder kernels format store manifest hardware errors",
        "torch watchfiles",
    ),
    "app.process": ("", "hardware store errors", "pydantic pydantic_settings"),
    "app.cluster": (
        "main http process server errors",
        "store",
        "fastapi ray starlette",
    ),
    "app.errors": ("", "errors", "fastapi starlette"),
    "audit": ("", "", ""),
    "audit.joint": (
        "answers firing rows shares options",
        "backbone store errors",
        "app.pipeline training.data",
    ),
    "audit.abstain": (
        "answers rows shares options",
        "backbone store manifest errors",
        "app.pipeline numpy sklearn training.run training.errors",
    ),
    "audit.answers": (
        "",
        "backbone store errors",
        "app.engine app.errors app.pipeline tqdm training.errors",
    ),
    "audit.rows": ("", "manifest", "training.data training.errors"),
    "audit.firing": ("", "manifest errors", "training.errors"),
    "audit.options": ("", "errors", "app.errors training.data training.options training.errors"),
    "audit.shares": ("", "", ""),
    "deltabert": ("client async_client protocol answers", "", ""),
    "deltabert.client": ("protocol answers", "", "httpx2"),
    "deltabert.async_client": ("client protocol answers", "", "httpx2"),
    "deltabert.protocol": ("answers", "", "httpx2"),
    "deltabert.answers": ("", "", "pydantic"),
    "deltas": ("backbone delta encoder errors format hardware manifest store", "", ""),
    "deltas.__main__": ("publish store format backbone delta manifest errors", "", ""),
    "deltas.publish": (
        "store format backbone delta manifest errors",
        "",
        "huggingface_hub pydantic safetensors torch transformers",
    ),
    "deltas.store": (
        "format backbone delta kernels manifest errors",
        "",
        "filelock huggingface_hub obstore pyarrow pydantic",
    ),
    "deltas.format": ("backbone delta manifest errors", "", "pydantic safetensors torch"),
    "deltas.encoder": ("backbone delta kernels", "", "torch"),
    "deltas.kernels": ("", "", "llvmlite numba numpy torch"),
    "deltas.backbone": (
        "manifest errors",
        "",
        "huggingface_hub safetensors tokenizers torch transformers",
    ),
    "deltas.delta": ("manifest errors", "", "torch"),
    "deltas.hardware": ("kernels errors", "", "torch"),
    "deltas.manifest": ("errors", "", "pydantic"),
    "deltas.errors": ("", "", ""),
    "training": ("", "", ""),
    "training.zoo": (
        "sweep study run data errors",
        "backbone format manifest publish store errors",
        "pyarrow torch",
    ),
    "training.report": ("study data options errors", "format manifest publish errors", ""),
    "training.sweep": ("study run data options errors", "errors", "filelock"),
    "training.submit": (
        "run data errors",
        "backbone format hardware store errors",
        "",
    ),
    "training.study": (
        "run strategies data options errors",
        "delta format hardware manifest errors",
        "matplotlib numpy pydantic ray scipy torch tqdm",
    ),
    "training.fit": (
        "run strategies options errors",
        "delta hardware manifest publish errors",
        "pydantic",
    ),
    "training.run": (
        "strategies data options errors",
        "backbone delta encoder format hardware manifest store errors",
        "filelock numpy pyarrow safetensors scipy sklearn torch tqdm",
    ),
    "training.strategies": ("options errors", "backbone delta manifest errors", "numpy torch"),
    "training.data": (
        "options errors",
        "backbone manifest errors",
        "datasets huggingface_hub numpy pandas pyarrow",
    ),
    "training.options": ("errors", "manifest errors", "pydantic"),
    "training.errors": ("", "errors", ""),
    "frontend": ("", "", ""),
    "frontend.__main__": ("", "", "streamlit"),
    "frontend.main": ("views panels client links state errors", "", "streamlit"),
    "frontend.views": (
        "panels reports client models state links glossary errors",
        "",
        "altair pandas streamlit",
    ),
    "frontend.panels": (
        "reports client models state links glossary errors",
        "",
        "altair pandas streamlit",
    ),
    "frontend.reports": (
        "client models glossary errors",
        "",
        "altair numpy prometheus_client pyarrow pydantic",
    ),
    "frontend.links": ("", "", "streamlit"),
    "frontend.state": ("client models errors", "", "streamlit"),
    "frontend.client": ("models errors", "", "requests"),
    "frontend.glossary": ("models", "", ""),
    "frontend.models": ("errors", "", "pydantic"),
    "frontend.errors": ("", "", ""),
}
# Third parties that one module of a package alone knows: one writes metrics, one reads them.
ONLY_IN = {
    "matplotlib": "training.study.figures",
    "obstore": "deltas.store.remote",
    "opentelemetry": "app.http.telemetry.tracing",
    "prometheus_client": "app.http.telemetry.metrics frontend.reports.live",
}


def unit_of(module: str) -> str:
    """Return the file or folder of a package that holds a module."""
    return ".".join(module.split(".")[:2])


def folder_violations(paths: list[str]) -> Iterator[str]:
    """Yield the folders that hold too much; `paths` are those of all Python files."""
    entries = defaultdict(set)
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if not parts[depth].startswith("__"):
                entries["/".join(parts[:depth])].add(parts[depth])
    for folder, names in entries.items():
        if len(names) > MAX_ENTRIES.get(folder, 10):
            yield f"{folder}: {len(names)} entries: {' '.join(sorted(names))}"


def size_violations(source: Source, num_importers: int) -> Iterator[str]:
    """Yield what is too long, too short or takes too many parameters in a file."""
    short = source.num_lines < MIN_FILE_LINES and "/__" not in source.path
    if source.num_lines > MAX_FILE_LINES:
        yield f"{source.path}: {source.num_lines} lines, at most {MAX_FILE_LINES}"
    if short and num_importers < 2:
        yield f"{source.path}: {source.num_lines} lines for {num_importers} importing file"
    for node in source.functions():
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{source.path}:{node.lineno}: {node.name} has {length} lines"
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = {argument.arg for argument in given} - {"self", "cls"}
        if len(names) > MAX_PARAMETERS:
            yield f"{source.path}:{node.lineno}: {node.name} takes {len(names)} parameters"


def direction_violations(source: Source, sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield the imports of a file that `DIRECTION` does not allow."""
    unit = unit_of(source.module)
    ours, deltas, others = DIRECTION[unit]
    package = unit.split(".")[0]
    allowed = {f"{package}.{name}" for name in ours.split()} | {unit}
    allowed |= {f"deltas.{name}" for name in deltas.split()} | set(others.split())
    for module, name in imported_names(source, sources):
        top = module.split(".")[0]
        target = unit_of(module) if top in (*OURS, "tests") else top
        if (
            (target not in allowed and top not in sys.stdlib_module_names)
            or module.startswith(".")
            or source.module not in ONLY_IN.get(top, source.module).split()
        ):
            yield f"{source.path}: imports {module} {name}".rstrip()


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules that import each other in a circle; an empty list if none do."""
    left = {name: set(targets) for name, targets in graph.items()}
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    return sorted(left)


def mirror_violations(source: Source, exists: Mapping[str, object]) -> Iterator[str]:
    """Yield a file that no test file mirrors and whose docstring names none.

    Args:
        source: a file of the product.
        exists: the paths of all test files.
    """
    folder, _, name = source.path.removesuffix(".py").rpartition("/")
    mirror = f"tests/unit/{folder}/test_{name.strip('_')}.py"
    named = re.findall(r"tests/[\w/]+\.py", ast.get_docstring(source.tree) or "")
    is_large = source.num_lines > MIRRORED_FILE_LINES and name != "__init__"
    if is_large and mirror not in exists:
        if not named:
            yield f"{source.path}: no {mirror}, and the docstring names no other test"
        yield from (f"{source.path}: {path} does not exist" for path in named if path not in exists)


def import_graph(sources: Mapping[str, Source]) -> dict[str, set[str]]:
    """Return the modules of ours that each module imports."""
    return {
        name: {target for target, _ in imported_names(source, sources) if target in sources}
        - {name}
        for name, source in sources.items()
    }


def test_a_folder_has_at_most_ten_entries(sources: dict[str, Source]) -> None:
    report("folders", folder_violations([source.path for source in sources.values()]))


def test_files_and_functions_have_a_readable_size(sources: dict[str, Source]) -> None:
    importers = Counter(target for targets in import_graph(sources).values() for target in targets)
    found = [
        line
        for name, source in sources.items()
        for line in size_violations(source, importers[name])
    ]
    report("sizes", found)


def test_imports_point_one_way(sources: dict[str, Source]) -> None:
    assert {unit_of(name) for name in sources} == set(DIRECTION), "a unit has no direction"
    found = [line for source in sources.values() for line in direction_violations(source, sources)]
    report("directions", found)


def test_no_modules_import_each_other_in_a_circle(sources: dict[str, Source]) -> None:
    assert not circle(import_graph(sources))


def test_every_file_has_a_test_file(
    sources: dict[str, Source], test_sources: dict[str, Source]
) -> None:
    exists = {source.path: source for source in test_sources.values()}
    found = [line for source in sources.values() for line in mirror_violations(source, exists)]
    report("mirror", found)


def test_no_module_has_a_vague_name(sources: dict[str, Source]) -> None:
    assert not [name for name in sources if name.split(".")[-1] in VAGUE]


def unrun_violations(source: Source, version: str) -> Iterator[str]:
    """Yield what is wrong about code that no machine has run: it says so, and it expires."""
    text = ast.get_docstring(source.tree) or ""
    expires = re.search(r"Expires: (\d+\.\d+\.\d+)", text)
    if source.path != UNRUN:
        if "no machine has run" in " ".join(source.text.lower().split()):
            yield f"{source.path}: only {UNRUN} may hold code that no machine has run"
    elif "experimental" not in text.split("\n")[0].lower():
        yield f"{source.path}: the first line must call the file experimental"
    elif expires is None or Version(expires[1]) <= Version(version):
        yield f"{source.path}: must say 'Expires: <a release after {version}>'"


def test_code_that_no_machine_has_run_expires(root: Path, sources: dict[str, Source]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [
        line for source in sources.values() for line in unrun_violations(source, project["version"])
    ]
    report("unrun", found)


def planted(path: str, text: str) -> Source:
    """Return a made-up file."""
    return Source.parse(path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("deltas/store/store.py", "import app.process"),
        ("deltas/encoder/encoder.py", "def f():\n    from deltas.format import read_delta"),
        ("deltas/kernels/int8.py", "from deltas.errors import DeltaError"),
        ("app/batching/queue.py", "import torch"),
        ("app/engine/engine.py", "from app.batching.queue import Answer"),
        ("app/main.py", "from training.data.tasks import TASKS"),
        ("app/main.py", "import audit.rows"),
        ("training/fit.py", "from audit.rows import read_rows"),
        ("deltas/__main__.py", "from audit.joint import main"),
        ("app/http/routes.py", "import prometheus_client"),
        ("training/run/loop/loop.py", "from training.study.plan import Study"),
        ("training/fit.py", "from fastapi import FastAPI"),
        ("frontend/client.py", "import importlib\nimportlib.import_module('torch.nn')"),
        ("app/main.py", "from . import server"),
        ("app/main.py", "from tests.bench.load import encode_requests"),
    ],
)
def test_a_planted_import_is_found(path: str, text: str) -> None:
    assert len(list(direction_violations(planted(path, text), {}))) == 1


def test_an_import_is_seen_through_a_package_that_re_exports_it() -> None:
    made = [
        planted("deltas/__init__.py", "from deltas.encoder.encoder import encode"),
        planted("deltas/encoder/encoder.py", "def encode(): ..."),
        planted("app/http/routes.py", "from deltas import encode"),
    ]
    sources = {source.module: source for source in made}
    assert list(direction_violations(made[2], sources)) == [
        "app/http/routes.py: imports deltas.encoder.encoder encode"
    ]
    whole = planted("app/http/routes.py", "import deltas\ndeltas.encode()")
    assert len(list(direction_violations(whole, sources))) == 1
    assert import_graph(sources)["app.http.routes"] == {"deltas.encoder.encoder"}


def test_planted_faults_of_the_layout_are_found() -> None:
    assert list(folder_violations([f"app/x/{letter}.py" for letter in "abcdefghijk"]))
    assert not list(folder_violations([f"app/x/{letter}.py" for letter in "abcdefghij"]))
    body = "    x = 1\n"
    long = planted("app/a.py", "def f():\n" + 60 * body)
    assert ["f has 61 lines" in line for line in size_violations(long, 2)] == [True]
    assert len(list(size_violations(planted("app/a.py", "x = 1\n" * 69), 1))) == 1
    assert len(list(size_violations(planted("app/a.py", "x = 1\n" * 451), 9))) == 1
    wide = planted("app/a.py", "def f(self, a, b, c, d, /, e, *g, f=1, h=2, i=3, j=4, **k): ...\n")
    assert ["takes 9" in line for line in size_violations(wide, 2)] == [True]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_planted_file_without_a_test_is_found() -> None:
    exists = {"tests/unit/app/test_a.py": 1, "tests/http/test_b.py": 1}
    lines = "\nx = 1" * 99
    for text, found in (
        ('"""Nothing."""', 1),
        ('"""See tests/http/test_b.py."""', 0),
        ('"""See tests/http/test_c.py."""', 1),
    ):
        assert len(list(mirror_violations(planted("app/b.py", text + lines), exists))) == found
    assert not list(mirror_violations(planted("app/a.py", lines), exists))


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (UNRUN, '"""CUDA (experimental).\n\nExpires: 0.2.0\n"""', 0),
        (UNRUN, '"""CUDA (experimental).\n\nExpires: 0.1.0\n"""', 1),
        (UNRUN, '"""CUDA (experimental)."""', 1),
        (UNRUN, '"""CUDA.\n\nExpires: 0.2.0\n"""', 1),
        ("app/main.py", "# No machine has\n# run this.", 0),
        ("app/main.py", '"""Start; no machine has run this."""', 1),
    ],
)
def test_planted_code_that_no_machine_has_run_is_found(path: str, text: str, found: int) -> None:
    assert len(list(unrun_violations(planted(path, text), "0.1.0"))) == found


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        (
            "app.main",
            {"datasets", "sklearn", "streamlit", "sentence_transformers", "training"}
            | {"numba", "sympy", "transformers"},
        ),
        ("training.fit", {"fastapi", "uvicorn", "streamlit", "sentence_transformers", "app"}),
        ("training.data.hub_dataset", {"torch", "numpy", "pandas", "pyarrow", "datasets"}),
        ("training.strategies.grammar", {"torch", "numpy", "pandas", "pyarrow", "datasets"}),
        ("deltabert", {"torch", "numpy", "transformers", "fastapi", "deltas", "app", "training"}),
        ("frontend.client", {"torch", "transformers", "fastapi", "deltas", "app", "training"}),
    ],
)
def test_nothing_forbidden_arrives_by_a_detour(module: str, forbidden: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert module.split(".")[0] in loaded
    assert not loaded & forbidden
