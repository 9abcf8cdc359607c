"""What is installed: files of the wheel and the source archive, extras, and the public names as a
type checker sees them."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile

import pytest

import flaxseg
from flaxseg import errors
from flaxseg.programs.recipe_list import recipe_names

_BUILD = """
import sys
from setuptools import build_meta
name = getattr(build_meta, sys.argv[1])(sys.argv[2])
print(f"built {name}")
"""


@pytest.fixture(scope="module")
def source(repository, tmp_path_factory):
    """A copy of the files that git knows or could know."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not in a git clone")
    copy = tmp_path_factory.mktemp("source") / "flaxseg"
    for name in listed.stdout.splitlines():
        if (repository / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((repository / name).read_bytes())
    return copy


def build(folder: pathlib.Path, what: str, out: pathlib.Path) -> pathlib.Path:
    """Builds without fetching anything; returns the file."""
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, what, str(out)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1].removeprefix("built ")


def package_files(source):
    """Those that belong into an installed package, as named there."""
    code = {str(path.relative_to(source)) for path in source.glob("flaxseg/**/*.py")}
    recipes = {f"flaxseg/configs/{path.name}" for path in source.glob("configs/*.py")}
    return code | recipes | {"flaxseg/py.typed"}


def test_the_wheel_holds_the_package_with_its_recipes_and_nothing_else(source, tmp_path):
    with zipfile.ZipFile(build(source, "build_wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
    meta = f"flaxseg-{flaxseg.__version__}.dist-info"
    files = ("licenses/LICENSE", "METADATA", "WHEEL", "entry_points.txt", "top_level.txt", "RECORD")
    assert names == package_files(source) | {f"{meta}/{file}" for file in files}
    assert {f"flaxseg/configs/{name}.py" for name in recipe_names()} <= names


def test_the_source_archive_makes_the_same_wheel_and_holds_no_tests(source, tmp_path):
    archive = build(source, "build_sdist", tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    made = {name for name in names if "egg-info" in name} | {"PKG-INFO", "setup.cfg"}
    code = {name for name in package_files(source) if not name.startswith("flaxseg/configs/")}
    recipes = {f"configs/{path.name}" for path in source.glob("configs/*.py")}
    others = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    assert names == made | code | recipes | others
    with zipfile.ZipFile(build(folder, "build_wheel", tmp_path)) as wheel:
        assert package_files(source) <= set(wheel.namelist())


def test_an_editable_install_is_a_path(source, repository, tmp_path):
    """An import hook would come after the folder above a clone, in which `flaxseg` is a namespace
    without anything in it; a path does not."""
    with zipfile.ZipFile(build(source, "build_editable", tmp_path)) as wheel:
        (hook,) = (name for name in wheel.namelist() if "dist-info" not in name)
        assert hook.endswith(".pth")
        path = wheel.read(hook).decode().strip()
    assert path == str(source)
    # The environment of the tests has such a path to this clone already.
    code = (
        f"import sys; sys.path = [p for p in sys.path if p != {str(repository)!r}] + [{path!r}]; "
        "import flaxseg.classes; print(flaxseg.__file__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.check_output(
        [sys.executable, "-c", code], cwd=source.parent, env=environment, text=True
    )
    assert found.strip() == str(source / "flaxseg" / "__init__.py")


def test_requirements_are_the_core_and_the_extra_for_training(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    lines = (repository / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted == [*project["dependencies"], *project["optional-dependencies"]["train"]]


def test_every_package_of_the_extra_for_training_is_known_when_it_is_missing(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    imported_as = {"orbax_checkpoint": "orbax", "opencv_python_headless": "cv2", "absl_py": "absl"}
    for line in project["optional-dependencies"]["train"]:
        name = line.partition(">")[0].replace("-", "_")
        error = errors.missing_package(ModuleNotFoundError(name=imported_as.get(name, name)))
        assert 'pip install "flaxseg[train]"' in str(error)
    assert errors.missing_package(ModuleNotFoundError(name="some_typo")) is None
    assert errors.missing_package(ModuleNotFoundError(name="flaxseg.typo")) is None


_WITHOUT_TRAINING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_without_the_extra_the_rooms_work_and_commands_say_what_is_missing(repository):
    # Flax itself needs the other packages of the extra.
    packages = {"tensorflow_datasets", "grain", "array_record", "ml_collections", "cv2"}
    packages |= {"huggingface_hub", "tensorboardX"}
    code = _WITHOUT_TRAINING.format(packages=packages) + textwrap.dedent("""
        import flaxseg
        from flaxseg import cli
        for room in ("layers", "models", "crf", "inference", "drawing", "evaluation", "export"):
            getattr(flaxseg, room)
        for room in ("saved_model", "weights"):
            getattr(flaxseg, room)
        assert cli.main(["models"]) == 0
        assert cli.main(["recipes"]) == 0
        assert cli.main(["train", "deeplab:data=shapes"]) == 1
        try:
            flaxseg.list_datasets()
        except flaxseg.errors.MissingPackageError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = r"the package '\w+' is not installed; it comes with: pip install \"flaxseg\[train\]\""
    assert re.search(f"^data sets: {said}$", done.stdout, re.MULTILINE)
    assert re.fullmatch(said, done.stdout.splitlines()[-1])
    assert re.fullmatch(f"error: {said}\n", done.stderr)


def test_editors_see_the_names_that_are_loaded_on_first_use(repository):
    module = ast.parse((repository / "flaxseg" / "__init__.py").read_text())
    (block,) = (node for node in module.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == flaxseg._PUBLIC | dict.fromkeys(flaxseg._ROOMS, "flaxseg")
    for name in flaxseg.__all__:
        assert getattr(flaxseg, name) is not None
        assert name in dir(flaxseg)
    with pytest.raises(AttributeError, match="no attribute 'modells'"):
        _ = flaxseg.modells


@pytest.mark.slow
def test_a_type_checker_tells_right_use_from_wrong(repository, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import flaxseg\n"
        'model = flaxseg.create_model("deeplabv3", num_classes=21, backbone="resnet50")\n'
        'model, variables = flaxseg.load_model("runs/camvid")\n'
        "names: list[str] = flaxseg.list_models()\n"
        'flaxseg.create_model(5, num_classes="many")\n'
        'flaxseg.load_model(directories="runs/camvid")\n'
        "flaxseg.evaluation.ConfusionMatrix(3).metrics().miou.upper()\n"
    )
    settings = tmp_path / "mypy.ini"
    # What JAX and Flax are made of is not asked: to read all of it takes a minute.
    skipped = ("jax", "flax", "optax", "grain", "orbax", "tensorflow_datasets", "scipy", "cv2")
    skipped += ("numpy", "ml_collections", "PIL", "tqdm", "huggingface_hub", "array_record", "absl")
    settings.write_text(
        f"[mypy]\ncache_dir = {tmp_path}\nfollow_imports = silent\nignore_missing_imports = True\n"
        + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in skipped)
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", f"--config-file={settings}", str(program)],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    lines = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert [int(line.split(":")[1]) for line in lines] == [5, 5, 6, 7], checked.stdout
    for line, words in zip(
        lines,
        ('to "create_model" has', '"create_model" has', '"load_model"', '"upper"'),
        strict=True,
    ):
        assert words in line
