"""The package as users get it: a wheel that needs no compiler and stands by itself."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import trautoml

ROOT = Path(__file__).parents[1]
WHEELS = sorted((ROOT / "dist").glob("trautoml-*.whl"))

needs_wheel = pytest.mark.skipif(not WHEELS, reason="no wheel in dist/: run `make setup`")


@needs_wheel
def test_the_tests_run_against_the_installed_wheel():
    """`make test` must not import the source tree."""
    if os.environ.get("PYTHONPATH"):
        pytest.skip("PYTHONPATH is set: somebody tries the source tree on purpose")
    assert Path(trautoml.__file__).is_relative_to(sysconfig.get_path("purelib"))
    assert metadata.version("trautoml") == trautoml.__version__


@needs_wheel
def test_the_wheel_works_in_a_clean_environment_without_a_compiler(tmp_path):
    venv.create(tmp_path / "clean", with_pip=False)
    folder = "Scripts" if os.name == "nt" else "bin"
    python = tmp_path / "clean" / folder / Path(sys.executable).name
    environment = {"PATH": str(python.parent), "HOME": str(tmp_path)}

    def run(*command):
        return subprocess.run(
            command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    run(
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
        *("--no-index", "--no-deps", str(WHEELS[-1])),
    )
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # The dependencies are those of this environment, behind the wheel's own folder.
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = (
        "import numpy, trautoml; from trautoml.grouping import MarkovGrouper; "
        "print(trautoml.__file__, MarkovGrouper().learn_one(numpy.full((8, 2), 0.5)).kind)"
    )
    file, kind = run(python, "-c", code).split()
    assert Path(file).is_relative_to(purelib)
    assert kind == "opened"
    assert run(python.parent / "trautoml", "--version").strip() == trautoml.__version__


@needs_wheel
def test_the_wheel_holds_the_package_and_nothing_else():
    names = zipfile.ZipFile(WHEELS[-1]).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"trautoml"}
    assert "trautoml/py.typed" in names
    assert "trautoml/_core.pyi" in names
    assert any(
        name.startswith("trautoml/_core.") and name.endswith((".so", ".pyd")) for name in names
    )
    assert not [name for name in names if "__pycache__" in name]


def test_every_public_name_is_there():
    for name in trautoml.__all__:
        assert getattr(trautoml, name).__name__ == name
    assert set(trautoml.__all__) <= set(dir(trautoml))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = trautoml.Nothing
