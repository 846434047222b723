"""Lower rooms never import upper ones: data flows one way, and `automl` knows all of them."""

import ast
from pathlib import Path

import pytest

import trautoml

PACKAGE = Path(trautoml.__file__).parent

LAYERS = [
    {"errors", "plain", "database", "tensor_files", "_core"},
    {"duration", "device"},
    {"images", "splits"},
    {"image_files"},
    {"archives", "folders"},
    {"torchvision_data"},
    {"task"},
    {"demo_tasks"},
    {"loading"},
    {"spec"},
    {"networks", "spaces"},
    {"engine"},
    {"classifier"},
    {"torchvision_models"},
    {"backbones"},
    {"features"},
    {"training"},
    {"jobs"},
    {"inputs"},
    {"grouping"},
    {"probes"},
    {"search"},
    {"testing"},
    {"reuse", "records"},
    {"store", "explain"},
    {"recording", "settings", "outcome"},
    {"callbacks"},
    {"automl"},
    {"progress", "summary"},
    {"cli"},
]
"""Rooms (a module or a package) from the lowest up; those of one layer don't import each other."""

UPWARD = {
    ("spec", "networks"),  # registers the architectures that ship when the first is built
}
"""Imports inside a function that look upward on purpose."""

HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    """The room of ``trautoml.room.more``; the package itself hands out the version only."""
    return ([*module.split("."), "trautoml"])[1]


def for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(file: Path) -> set[tuple[str, bool]]:
    """(module of this package, whether inside a function) of all imports that are ever run."""
    found = set()

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt) and for_types_only(child):
                continue
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: a relative import"
                names = [child.module or ""]
                if child.module == "trautoml":
                    names = [f"trautoml.{alias.name}" for alias in child.names]
            else:
                names = []
            found.update((n, inside) for n in names if n.partition(".")[0] == "trautoml")
            visit(child, inside or isinstance(child, ast.FunctionDef))

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return found


MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file != PACKAGE / "__init__.py"
}


def test_every_room_has_its_layer() -> None:
    assert {name.partition(".")[0] for name in MODULES} | {"_core"} == set(HEIGHT)
    assert sum(len(rooms) for rooms in LAYERS) == len(HEIGHT)


@pytest.mark.parametrize("name", MODULES)
def test_no_room_imports_an_upper_one(name: str) -> None:
    room = name.partition(".")[0]
    for module, inside in imports(MODULES[name]):
        other = room_of(module)
        if other in {room, "__version__"} or (inside and (room, other) in UPWARD):
            continue
        assert HEIGHT[other] < HEIGHT[room], f"{name} imports {module}"


def test_the_exceptions_are_all_in_use() -> None:
    used = {
        (name.partition(".")[0], room_of(module))
        for name, file in MODULES.items()
        for module, inside in imports(file)
        if inside
    }
    assert used >= UPWARD


def test_only_automl_and_what_stands_on_it_knows_all_rooms() -> None:
    below = {"probes", "search", "reuse", "store"}
    for name, file in MODULES.items():
        if {room_of(module) for module, _ in imports(file)} >= below:
            assert name in {"automl", "cli"}


def test_the_package_itself_imports_nothing_at_once() -> None:
    assert not {module for module, inside in imports(PACKAGE / "__init__.py") if not inside}
