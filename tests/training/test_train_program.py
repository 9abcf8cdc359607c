"""`train.py` run as a program: its messages and exit codes, and that no kill changes a result."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from flaxseg.training.checkpoint import Checkpoints

TINY = str(pathlib.Path(__file__).with_name("tiny_program.py"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory, repository):
    """One device, and a compilation cache that all programs of these tests share."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
    return {
        **os.environ,
        "PYTHONPATH": str(repository),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture
def train(repository, environment):
    """Runs a program to its end."""

    def run(*arguments, program="train.py", config="configs/default.py"):
        return subprocess.run(
            [sys.executable, program, *([f"--config={config}"] if config else []), *arguments],
            cwd=repository,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def tiny_arguments(shapes_dir):
    """A run of the tiny model that saves all the time."""
    settings = {
        "model.name": "tiny",
        "data.dir": shapes_dir,
        "data.eval_split": "val[:20]",
        "data.crop_size": "16,16",
        "batch_size": 2,
        "steps": 60,
        "eval.every_steps": 30,
        "eval.batch_size": 16,
        "eval.num_images": 1,
        "checkpoint.every_steps": 3,
        "log.every_steps": 10,
        "log.tensorboard": False,
    }
    return [f"--config.{name}={value}" for name, value in settings.items()]


def start(environment, repository, workdir, arguments):
    config = "--config=configs/default.py"
    return subprocess.Popen(
        [sys.executable, TINY, config, *arguments, f"--workdir={workdir}"],
        cwd=repository,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def final_digests(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    content = checkpoints._read_meta(checkpoints.steps()[-1])
    digests = {name: leaf["sha256"] for name, leaf in content["leaves"].items()}
    return content["step"], digests, content["history"], content["iterator_state"]


def wait_for(condition, process, seconds=120):
    """Poll until the condition holds or the process is over."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


def newest(workdir):
    """The newest step on the disk, complete or in the making."""
    folder = workdir / "checkpoints"
    names = [p.name.split(".")[0] for p in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


MOMENTS = {
    "before the first checkpoint": lambda folder: (folder / "config.json").exists(),
    "while one is written": lambda folder: any(folder.glob("checkpoints/*.saving*/*")),
    "after step 20": lambda folder: newest(folder) >= 20,
    "after step 40": lambda folder: newest(folder) >= 40,
}


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(["while one is written", "after step 20"], id="two"),
        pytest.param(list(MOMENTS), id="all", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_the_run_ends_as_if_it_had_not_been(
    tmp_path, repository, environment, train, tiny_arguments, moments
):
    whole = train(*tiny_arguments, f"--workdir={tmp_path / 'whole'}", program=TINY)
    assert whole.returncode == 0, whole.stderr
    workdir = tmp_path / "killed"
    random_moments = random.Random(7)
    kills = 0
    for moment in moments:
        process = start(environment, repository, workdir, tiny_arguments)
        wait_for(lambda moment=moment: MOMENTS[moment](workdir), process)
        if moment.startswith("after"):
            time.sleep(random_moments.uniform(0, 0.1))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills == len(moments)
    last = train(*tiny_arguments, f"--workdir={workdir}", program=TINY)
    assert last.returncode == 0, last.stderr
    assert final_digests(workdir) == final_digests(tmp_path / "whole")
    model = "model/model.safetensors"
    assert (workdir / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_exits_75(
    tmp_path, repository, environment, train, tiny_arguments, number
):
    arguments = [*tiny_arguments, "--config.steps=100000", "--config.eval.every_steps=0"]
    process = start(environment, repository, tmp_path, arguments)
    wait_for(lambda: newest(tmp_path) >= 6, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "saving after this step" in said
    assert "the same command goes on from there" in said
    step = final_digests(tmp_path)[0]
    assert f"after step {step}, saved" in said


def test_two_programs_cannot_share_a_run(tmp_path, repository, environment, train, tiny_arguments):
    arguments = [*tiny_arguments, "--config.steps=100000"]
    process = start(environment, repository, tmp_path, arguments)
    try:
        wait_for(lambda: (tmp_path / "config.json").exists(), process)
        second = train(*arguments, f"--workdir={tmp_path}", program=TINY)
        assert second.returncode == 1
        assert f"in use by process {process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        process.kill()
        process.communicate()


MISTAKES = [
    (
        "configs/deeplab.py:data=cityscapes",
        ["--config.data.dir=DIR/data"],
        1,
        ["cannot be downloaded by a program", "--config.data.manual_dir"],
    ),
    ("configs/deeplab.py:data=shapess", [], 2, ["Did you mean 'shapes'?"]),
    (
        "configs/deeplab.py:data=shapes",
        ["--config.optimizer.learnin_rate=1"],
        2,
        ["no field 'optimizer.learnin_rate'", "Did you mean 'optimizer.learning_rate'?"],
    ),
    (  # the data is neither there nor looked for before the model is known to be possible
        "deeplab:data=camvid",
        ["--config.data.dir=DIR/data", "--config.model.options.rates=0"],
        2,
        ["model.options.rates is (0,)"],
    ),
    (
        "configs/deeplab.py:data=shapes",
        [
            "--config.steps=0",
            "--config.data.crop_size=0,9",
            "--config.loss.outputs.logits.kind=cross_entropy + 0.5 * dise",
        ],
        2,
        ["steps is 0", "data.crop_size is (0, 9)", "loss.outputs.logits", "mean 'dice'?"],
    ),
]
MORE_MISTAKES = [
    ("deeplab", ["--coordinator=localhost:1"], 2, ["--coordinator needs --num_processes and"]),
    (None, ["--config.steps=1"], 2, ["no recipe is given", "flaxseg recipes"]),
    ("configs/deeplab.py:data=shapes", ["--config.steps=many"], 2, ["steps", "many"]),
    *(
        ("deeplab:data=camvid", ["--config.data.dir=DIR/data", wrong], 2, [field])
        for wrong, field in [
            ("--config.model.output_stride=0", "model.output_stride is 0"),
            ("--config.model.backbone=vgg", "model.backbone is 'vgg'"),
            ("--config.optimizer.frozen=head", "optimizer.frozen has 'head'"),
        ]
    ),
    ("configs/deeplab.py:varant=v3", [], 2, ["Did you mean 'variant'?"]),
    ("configs/nope.py", [], 2, ["configs/nope.py cannot be read"]),
    (
        "configs/deeplab.py:data=shapes",
        ["--config.optimzer.learning_rate=1"],
        2,
        ["Did you mean 'optimizer.learning_rate'?"],
    ),
    (
        "configs/deeplab.py:data=shapes",
        ["--config.model.options.rates=1,2", "--config.model.options.featurs=9"],
        2,
        ["no field 'model.options.featurs'", "Did you mean 'model.options.features'?"],
    ),
    ("deeplab", ["--config.stepz=1"], 2, ["Did you mean 'steps'?"]),
    ("deeplap:data=shapes", [], 2, ["no recipe 'deeplap'", "Did you mean 'deeplab'?"]),
    ("configs/deeplab.py:data=shapes", ["--wrkdir=x"], 2, ["wrkdir", "workdir"]),
    (
        "configs/deeplab.py:data=camvid",
        ["--config.data.dir=DIR/data", "--config.data.manual_dir=/does/not/exist"],
        1,
        ["/does/not/exist"],
    ),
]


@pytest.mark.parametrize(
    ("config", "arguments", "code", "parts"),
    [*MISTAKES, *(pytest.param(*mistake, marks=pytest.mark.slow) for mistake in MORE_MISTAKES)],
)
def test_mistakes_have_a_message_and_a_code(train, tmp_path, config, arguments, code, parts):
    arguments = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
    done = train(*arguments, f"--workdir={tmp_path / 'run'}", config=config)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file(train, tmp_path, tiny_arguments):
    (tmp_path / "run").write_text("")
    done = train(*tiny_arguments, f"--workdir={tmp_path / 'run'}", program=TINY)
    assert done.returncode == 2
    assert "it must be a folder, and it is a file" in done.stderr


def test_a_loss_that_is_not_finite_exits_3(train, tmp_path, tiny_arguments):
    arguments = [*tiny_arguments, "--config.optimizer.learning_rate=1e38"]
    done = train(*arguments, f"--workdir={tmp_path}", program=TINY)
    assert done.returncode == 3, done.stderr
    assert "not finite in step" in done.stderr
    assert "shapes" in done.stderr or "train" in done.stderr


@pytest.mark.slow
def test_data_workers_change_nothing(train, tmp_path, tiny_arguments):
    """Grain's worker processes read absl's flags: the program must have parsed them."""
    arguments = [*tiny_arguments, "--config.steps=6"]
    for workers in (0, 2):
        done = train(
            *arguments,
            f"--config.data.num_workers={workers}",
            f"--workdir={tmp_path / str(workers)}",
            program=TINY,
        )
        assert done.returncode == 0, done.stderr
    assert final_digests(tmp_path / "0")[1] == final_digests(tmp_path / "2")[1]


@pytest.mark.slow
def test_the_shapes_recipe_runs_and_a_second_call_has_nothing_to_do(train, tmp_path, shapes_dir):
    arguments = [
        "--config.steps=2",
        "--config.schedule.warmup_steps=0",
        "--config.batch_size=2",
        "--config.data.crop_size=33,33",
        f"--config.data.dir={shapes_dir}",
    ]
    recipe = "configs/deeplab.py:data=shapes"
    done = train(*arguments, f"--workdir={tmp_path}", config=recipe)
    assert done.returncode == 0, done.stderr
    assert "crescent" in done.stderr
    assert (tmp_path / "model" / "model.safetensors").exists()
    again = train(*arguments, f"--workdir={tmp_path}", config=recipe)
    assert again.returncode == 0
    assert "going on from step 2" in again.stderr
