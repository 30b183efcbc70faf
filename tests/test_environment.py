"""The repository itself: its top level, its requirements, and what its files may not hold."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

TOP = {
    *("book", "_config.yml", "_toc.yml", "mergelib", "params", "tests", "benchmarks"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", ".gitignore"),
    *("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", "conftest.py", ".ci"),
    ".pre-commit-config.yaml",
}
EXTRAS = "clip,glyphs,sources,dask,book,test"
LEFT_OUT = "ray"  # large, and all that runs on it runs on Dask too
LARGEST = 10 * 2**20
# Written in pieces, so that this file does not hold what it looks for.
REGISTRIES = re.compile(r"pypi\." + r"org|pythonhosted\." + r"org|repo\.anaconda\." + r"com")
MACHINE_PATHS = re.compile(r"(?<![\w./~-])/(?:home|root|Users|work|tmp|opt|mnt)/[\w.-]+")


@pytest.fixture(scope="module")
def tracked(root) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    return [root / name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def _requirements(root: Path) -> tuple[dict, list[str]]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == {*EXTRAS.split(","), LEFT_OUT}
    extras = project["optional-dependencies"].values()
    return project, project["dependencies"] + [each for extra in extras for each in extra]


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_conda_users_and_make_install_the_same(root):
    project = _requirements(root)[0]
    listed = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    (pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    assert pip == ["--constraint constraints.txt", f"--editable .[{EXTRAS}]"]
    assert f"python{project['requires-python']}" in listed
    assert f".[{EXTRAS}]" in (root / "Makefile").read_text()


def test_requirements_have_lower_bounds_and_only_jupyter_book_an_upper_one(root):
    for requirement in _requirements(root)[1]:
        assert ">=" in requirement, requirement
        assert ("<" in requirement) == requirement.startswith("jupyter-book"), requirement


def test_a_version_is_fixed_for_every_requirement_and_lies_within_its_bounds(root):
    lines = (root / "constraints.txt").read_text().splitlines()
    fixed = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[\d.]+(?:post\d+)?", version) for version in fixed.values()), fixed
    for requirement in _requirements(root)[1]:
        assert Requirement(requirement).specifier.contains(fixed[_name(requirement)]), requirement


def test_the_core_needs_neither_jupyter_nor_the_sources_of_glyphs(root):
    core = {_name(each) for each in _requirements(root)[0]["dependencies"]}
    heavy = {"papermill", "jupyter-book", "nbval", "nbformat", "ipykernel", "matplotlib", "seaborn"}
    assert not core & (heavy | {"qtawesome", "mlxtend", "scikit-image", "open-clip-torch"})


def test_top_level_is_the_agreed_one(root, tracked):
    assert {path.relative_to(root).parts[0] for path in tracked} == TOP


def test_no_large_file_and_no_pickle(tracked):
    assert [path.name for path in tracked if path.stat().st_size > LARGEST] == []
    assert [path.name for path in tracked if path.suffix in (".pt", ".pth", ".pkl", ".npy")] == []


def test_no_machine_paths_and_no_registry_hosts(root, tracked):
    found = []
    for path in tracked:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.name == Path(__file__).name:
            continue
        for pattern in (REGISTRIES, MACHINE_PATHS):
            found += [f"{path.relative_to(root)}: {hit}" for hit in pattern.findall(text)]
    assert found == []


def test_continuous_integration_calls_make_test(root):
    script = root / ".ci" / "run"
    assert "make test" in script.read_text()
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"


def test_links_of_the_readme_lead_somewhere(root):
    text = (root / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named = re.findall(
        r"`((?:params|book|tests|benchmarks)/[\w./]*|mergelib/\w+/|_\w+\.yml)`", text
    )
    missing = [name for name in (*links, *named) if not (root / name).exists()]
    assert missing == []
