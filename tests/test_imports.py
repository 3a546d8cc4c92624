# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The direction of imports, from plain data up to the command line, and what each file imports of others."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


PACKAGE = Path(__file__).resolve().parents[1] / "hf_share"

# a file or a folder imports from its own line or from lines above
LAYERS = (
    "errors about plain steps plan linalg planes codes masks difference files markdown budget window hashes",
    "fused sites peft_type",
    "rules rebuild view targets config attention sublayers",
    "around binding shelter adapter scale atoms factors low_rank sparse_delta widths nested bywidth lanes",
    "coded",
    "modules allocate guards untouched",
    "registry ties visits depths dense",
    "arrange cut plain_lanes layout",
    "attach",
    "importance gates lines",
    "weighed",
    "sort_lanes structure",
    "offers fit materialize elastic per_layer drift activations prune",
    "formed swap settle extract cut_sizes costs packed backends merge filesize",
    "methods",
    "hub share quantize train search eval shapes describe plots scan",
    "estimate propose export",
    "compare",
    "cli_common launch",
    "cli_diff cli_eval cli_export cli_scan cli_search cli_slice cli_train",
    "cli_plan cli_share",
    "cli_quantize",
    "cli",
    "__init__",
    "__main__",
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer.split()}
OF_METHODS = set(
    "errors about plain steps plan linalg fused sites rules scale config targets adapter importance gates "
    "methods attention atoms factors dense drift allocate low_rank sparse_delta masks nested bywidth lanes "
    "structure rebuild weighed "
    "visits".split()
)
LATER = {("plan", "attach")}  # inside a function: `plan.validate(model)`
OUTSIDE = {
    "errors about plain steps plan difference files markdown budget": set(),
    "linalg fused sites rules rebuild modules": {"torch"},
    "config": {"torch", "peft"},
}


def _files() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(PACKAGE).with_suffix("")): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def _imports(name: str, tree: ast.AST) -> tuple[set[str], set[str]]:
    """Files of ours, and packages of others, that the file `name` imports."""
    ours, others = set(), set()
    folder = name.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] + (node.module.split(".") if node.module else [])
            path = "/".join(base)
            inside = not node.module or (PACKAGE / path).is_dir()
            ours |= {f"{path}/{a.name}".lstrip("/") if inside else path for a in node.names}
    ours = {
        n if (PACKAGE / f"{n}.py").exists() else f"{n.rpartition('/')[0]}/__init__".lstrip("/") for n in ours
    }
    return ours, others - set(sys.stdlib_module_names)


FILES = _files()


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    ours, others = _imports(name, FILES[name])
    room = name.partition("/")[0]
    assert room in RANK, f"give {room!r} its place in LAYERS"
    for other in ours:
        above = other.partition("/")[0]
        if (room, above) not in LATER:
            assert RANK[above] <= RANK[room], f"{name} imports {other}, which lies above it"
        if room == "methods":
            assert above in OF_METHODS, f"a method imports {other}; methods see plans, rules and sites only"
    for rooms, allowed in OUTSIDE.items():
        if name in rooms.split():
            assert others <= allowed, f"{name} imports {others - allowed}"


def test_no_file_imports_itself_round_a_corner():
    graph = {}
    for name, tree in FILES.items():
        top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
        graph[name] = _imports(name, top)[0]
    TopologicalSorter(graph).prepare()
