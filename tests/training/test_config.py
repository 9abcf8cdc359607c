"""The config: its checks before a run, and what may change between two starts."""

import json

import pytest

from flaxseg.errors import ConfigError
from flaxseg.training import recipes
from flaxseg.training.assemble import model_options
from flaxseg.training.config import config_to_dict, default_config
from flaxseg.training.config_check import validate_config
from flaxseg.training.losses import OutputLoss
from flaxseg.training.resume import changed_fields, check_resumable


def test_the_default_is_valid_and_json():
    config = default_config()
    validate_config(config, device_count=8)
    assert json.loads(json.dumps(config_to_dict(config)))["data"]["crop_size"] == [512, 512]


def test_all_problems_are_reported_at_once():
    config = default_config()
    config.steps = 0
    config.data.crop_size = (0, 3)
    config.model.backbone = "resnet51"
    config.parallel = "jitt"
    config.data.scale = (2.0, 0.5)
    config.optimizer.momentum = 1.5
    config.data.train_split = "trian"
    with pytest.raises(ConfigError) as info:
        validate_config(config)
    message = str(info.value)
    for part in (
        "steps is 0; it must be at least 1",
        "data.crop_size is (0, 3)",
        "Did you mean 'resnet50'?",
        "Did you mean 'jit'?",
        "data.scale is (2.0, 0.5)",
        "optimizer.momentum is 1.5",
        "Did you mean 'train'?",
    ):
        assert part in message, message


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("batch_size", -4, "at least 1"),
        ("data.crop_size", (65,), "(height, width)"),
        ("data.crop_size", (65.5, 65), "(height, width)"),
        ("eval.pad_to", (-1, 2), "(height, width)"),
        ("optimizer.learning_rate", float("nan"), "more than 0"),
        ("optimizer.learning_rate", float("inf"), "more than 0"),
        ("optimizer.ema_decay", 1.0, "less than 1"),
        ("schedule.name", "polly", "Did you mean 'poly'?"),
        ("dtype", "float16", "bfloat16"),
        ("loss.class_weights", (1.0, 2.0), "9 classes"),
        ("schedule.warmup_steps", 1000, "less than steps"),
        ("schedule.step_milestones", (5, 5), "increasing"),
        ("checkpoint.keep_last", 0, "at least 1"),
        ("init.reinit_head", True, "init.model"),
        ("allow_change", "optimizer.learning_rat", "Did you mean 'optimizer.learning_rate'?"),
        ("data.name", "voc", "Did you mean 'voc_segmentation'?"),
        ("data.name", "camvidd", "Did you mean 'camvid'?"),
    ],
)
def test_each_problem_says_what_is_wanted(field, value, wanted):
    config = default_config()
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(ConfigError) as info:
        validate_config(config)
    assert field.split(".")[0] in str(info.value) or "camvidd" in str(info.value)
    assert wanted in str(info.value)


def test_unknown_missing_and_mistyped_fields_of_a_config_file():
    config = default_config()
    with config.unlocked():
        config.optimizer.learnin_rate = 0.1
        del config.seed
        del config.loss.class_weights
        config.loss.class_weights = "1,2"
    with pytest.raises(ConfigError) as info:
        validate_config(config)
    message = str(info.value)
    assert "no field 'optimizer.learnin_rate'. Did you mean 'optimizer.learning_rate'?" in message
    assert "'seed' is missing; its default is 0" in message
    assert "loss.class_weights is '1,2'; it must be a tuple of numbers" in message


def test_a_batch_that_devices_cannot_share_names_the_nearest_sizes():
    config = default_config()
    config.batch_size = 12
    with pytest.raises(
        ConfigError, match="12 cannot be shared evenly by 8 devices; set it to 8 or 16"
    ):
        validate_config(config, device_count=8)
    config.optimizer.accumulate_steps = 3
    with pytest.raises(ConfigError, match="24"):
        validate_config(config, device_count=8)


@pytest.mark.parametrize(
    ("mesh", "problem"),
    [
        ("data:4", "mesh: 'data:4' is not understood; write key=value, key=value"),
        ("data=4, data=2", "mesh: 'data' comes twice"),
        ("data=four", "mesh: 'data' is 'four'; it must be a whole number"),
        ("space=0", "mesh has space=0; an axis has at least 1 device"),
        ("data=4, height=2", "mesh has an axis 'height'; it can have data and space"),
        ("data=4, spcae=2", r"Did you mean 'space'\?"),
        ("data=4, space=4", "is for 16 devices, and there are 8; set one of .*'data=4, space=2'"),
        ("space=3", "there are 8"),
        ("space=8", "data.crop_size: the height 513 .* space=8; set it to 512 or 768"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_with_one_that_can(mesh, problem):
    config = default_config()
    config.mesh, config.data.crop_size = mesh, (513, 513)
    with pytest.raises(ConfigError, match=problem):
        validate_config(config, device_count=8)


def test_a_batch_is_shared_by_the_devices_that_do_not_share_images():
    config = default_config()
    config.mesh, config.batch_size, config.data.crop_size = "space=2", 4, (512, 513)
    validate_config(config, device_count=8)
    config.batch_size = 6
    with pytest.raises(ConfigError, match="6 cannot be shared evenly by data=4; set it to 4 or 8"):
        validate_config(config, device_count=8)
    config.batch_size, config.parallel = 4, "pmap"
    with pytest.raises(ConfigError, match="Set parallel to 'jit'"):
        validate_config(config, device_count=8)
    config.mesh = "data=8"
    config.batch_size = 8
    validate_config(config, device_count=8)


def test_a_resumed_run_refuses_what_would_make_it_another_run():
    old, config = config_to_dict(default_config()), default_config()
    config.optimizer.learning_rate = 0.5
    config.steps = 7
    config.log.every_steps = 1
    config.data.num_workers = 2
    arguments = {"allow_change": "", "workdir": "runs/x"}
    with pytest.raises(ConfigError) as info:
        check_resumable(old, config_to_dict(config), **arguments)
    assert "optimizer.learning_rate: was 0.01, is 0.5" in str(info.value)
    assert "steps: was 1000, is 7" in str(info.value)
    assert "log" not in str(info.value)
    assert "num_workers" not in str(info.value)
    assert "allow_change=optimizer.learning_rate,steps" in str(info.value)
    arguments["allow_change"] = "steps"
    with pytest.raises(ConfigError, match="learning_rate") as info:
        check_resumable(old, config_to_dict(config), **arguments)
    assert "steps: was" not in str(info.value)
    for allowed in ("steps, optimizer", "all"):
        check_resumable(
            old, config_to_dict(config), allow_change=allowed, workdir=arguments["workdir"]
        )


def test_changed_fields_sees_both_sides():
    assert changed_fields({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == [
        ("b.c", 2, 3),
        ("d", "not set", 4),
    ]
    assert changed_fields({"a": {"x": 1}}, {"a": {}}) == [("a.x", 1, "not set")]


def test_the_losses_of_outputs_are_checked():
    config = default_config()
    config.model.name, config.model.output_stride = "icnet", 8
    recipes.set_output_loss(config, "sub4", "sub24", weight=0.16)
    validate_config(config)
    with config.unlocked():
        config.loss.outputs.sub4.wieght = 0.1
        config.loss.outputs.sub24 = {"weight": "much", "kind": "cross_entropy"}
        config.loss.outputs.sub124 = 0.4
    with pytest.raises(ConfigError) as info:
        validate_config(config)
    for part in (
        "no field 'loss.outputs.sub4.wieght'. Did you mean 'loss.outputs.sub4.weight'?",
        "loss.outputs.sub24.weight is 'much'; it must be a number",
        "'loss.outputs.sub24.resize_labels' is missing; its default is False",
        "no field 'loss.outputs.sub124'",
    ):
        assert part in str(info.value), str(info.value)

    config = default_config()
    config.loss.outputs.logits.kind = "cros_entropy"
    config.loss.outputs.auxiliary.weight = -1.0
    recipes.set_output_loss(config, "border")
    config.loss.outputs.border.target = "lable"
    with pytest.raises(ConfigError) as info:
        validate_config(config)
    for part in (
        "loss.outputs.logits.kind is 'cros_entropy': there is no loss 'cros_entropy'",
        "Did you mean 'cross_entropy'?",
        "loss.outputs.auxiliary.weight is -1.0; it must be at least 0",
        "loss.outputs.border.target is 'lable': there is no target 'lable'",
        "Did you mean 'label'?",
    ):
        assert part in str(info.value), str(info.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cross_entropy +", "not understood"),
        ("cross_entropy(2)", "not understood"),
        ("cross_entropy - cross_entropy", "not understood"),
        ("cross_entropy(gamma=x)", "not understood"),
        ("0 * cross_entropy", "factor 0 .* above 0"),
        ("cross_entropy(gamma=2)", "no argument 'gamma'; it has none"),
        ("cross_entropy(label_smoothing=0.1)", "no argument 'label_smoothing'"),
    ],
)
def test_a_kind_that_cannot_be_read_is_refused(kind, message):
    with pytest.raises(ConfigError, match=message):
        OutputLoss(kind=kind)


def test_a_loss_of_auxiliary_outputs_makes_a_model_that_has_them():
    config = default_config()
    assert "auxiliary" not in model_options(config)
    config.loss.outputs.auxiliary.weight = 0.4
    assert model_options(config)["auxiliary"]
    config.loss.outputs.auxiliary.weight = 0.0
    recipes.set_output_loss(config, "c4", weight=0.4)
    assert model_options(config)["auxiliary"]
    config.model.name = "fcn8s"  # has no such option
    assert "auxiliary" not in model_options(config)
