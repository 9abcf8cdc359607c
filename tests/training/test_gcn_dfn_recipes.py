"""The recipes of GCN and DFN: each makes a network with a loss for every output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipe_networks import create_model, every_recipe, load_recipe, parameters, trace
from tiny_segmenter import he_normal

import flaxseg
from flaxseg.backbones import ResNet
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.errors import ConfigError
from flaxseg.layers import normalize, resize
from flaxseg.training.config_check import validate_config
from flaxseg.training.losses import OutputLoss, border_target
from flaxseg.training.objective import Objective
from flaxseg.training.optimizer import make_optimizer
from flaxseg.training.state import create_state
from flaxseg.training.step import make_train_step
from flaxseg.weights import list_hub_weights

GCN = ("gcn", "unrefined", "baseline", "trivial", "stack", "resnet_gcn")
DFN = ("dfn", "smooth", "rrb")


@pytest.mark.parametrize(("variant", "data"), [*every_recipe(GCN), *every_recipe(DFN)])
def test_every_recipe_is_valid_and_has_the_backbone_it_says(variant, data):
    config = load_recipe("gcn" if variant in GCN else "dfn")(f"data={data},variant={variant}")
    validate_config(config)
    assert config.init.backbone in ("", *list_hub_weights())
    model = create_model(config)
    wanted = {"camvid": "EfficientNetLite0"}.get(data, "ResNet")
    wanted = "ResNetGCN" if variant == "resnet_gcn" else wanted
    assert type(model.backbone).__name__ == wanted
    assert model.backbone.output_stride == 32
    # Random weights only where the recipe cannot have any.
    assert (config.init.backbone == "") == (data == "shapes" or variant == "resnet_gcn")


@pytest.mark.parametrize("variant", GCN)
def test_variants_of_gcn(variant):
    params = parameters(create_model(load_recipe("gcn")(f"data=shapes,variant={variant}")))
    layers = {
        "baseline": {"conv"},
        "trivial": {"conv"},
        "stack": {f"conv{index}" for index in range(1, 6)},
    }
    lines = {"left_vertical", "left_horizontal", "right_vertical", "right_horizontal"}
    assert set(params["gcn_c5"]) == layers.get(variant, lines)
    assert ("refine_s1" in params) == (variant in ("gcn", "resnet_gcn"))
    assert ("left_vertical_conv" in params["backbone"]["layer4_0"]) == (variant == "resnet_gcn")


def test_windows_are_as_large_as_the_coarsest_level_of_a_crop():
    for data, side in (("voc", 15), ("cityscapes", 25)):
        config = load_recipe("gcn")(f"data={data}")
        assert config.model.options.kernel_size == side
        assert config.data.crop_size[0] // 32 in (side, side + 1)


@pytest.mark.parametrize("variant", DFN)
def test_dfn_has_a_loss_for_every_output(variant):
    config = load_recipe("dfn")(f"data=shapes,variant={variant}")
    model = create_model(config)
    outputs = trace(model)[0].auxiliary
    described = config.loss.outputs.to_dict()
    assert described.keys() == {"logits", "auxiliary", *outputs}
    for name in outputs:
        loss = OutputLoss(**described[name])
        assert loss.align_corners
        if name.startswith("border_"):
            assert (loss.weight, loss.target) == (0.1, "border(radius=4)")
            assert loss.kind == "focal(gamma=2.0, alpha=0.25)"
        else:
            assert (loss.weight, loss.kind, loss.target) == (1.0, "cross_entropy", "label")


@pytest.mark.parametrize(
    ("system", "variant"), [("gcn", "gcn"), pytest.param("dfn", "dfn", marks=pytest.mark.slow)]
)
def test_a_training_step_takes_the_losses_of_the_recipe(system, variant):
    """As it is traced, a step refuses outputs without a loss, and losses without an output."""
    config = load_recipe(system)(f"data=shapes,variant={variant}")
    model = create_model(config, 5)
    losses = {name: OutputLoss(**own) for name, own in config.loss.outputs.to_dict().items()}
    tx = make_optimizer(parameters(model), name="sgd", weight_decay=0.0, head_lr_multiplier=1.0)
    step = make_train_step(model, tx, schedule=lambda step: 0.1, objective=Objective(losses))
    batch = {
        "image": jax.ShapeDtypeStruct((2, 65, 33, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((2, 65, 33), jnp.uint8),
    }
    state = jax.eval_shape(lambda: create_state(model, tx, 0, (65, 33)))
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == ()
    if system == "dfn":
        unknown = {**losses, "border_c6": losses["logits"]}
        step = make_train_step(model, tx, schedule=lambda step: 0.1, objective=Objective(unknown))
        with pytest.raises(ConfigError, match="border_c6"):
            jax.eval_shape(step, state, batch)


def test_numbers_of_the_authors_code():
    for data, crop, steps, batch, rate, decay in (
        ("voc", 512, 39_600, 32, 8e-4, 1e-5),
        ("cityscapes", 800, 80_000, 16, 7e-4, 1e-4),
    ):
        config = load_recipe("dfn")(f"data={data}")
        assert config.data.crop_size == (crop, crop)
        assert (config.steps, config.batch_size) == (steps, batch)
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay) == (rate, decay)
        assert (optimizer.head_lr_multiplier, optimizer.momentum) == (10.0, 0.9)
        assert not optimizer.decay_bn_and_bias
        assert (config.schedule.name, config.schedule.power) == ("poly", 0.9)


@pytest.mark.slow
@pytest.mark.promotes("optax")
def test_dfns_border_network_finds_borders():
    """With the losses of the recipe it tells borders from the rest, at every stage."""
    losses = load_recipe("dfn")("data=shapes").loss.outputs.to_dict()
    losses = {name: OutputLoss(**own) for name, own in losses.items()}
    model = flaxseg.create_model(
        "dfn",
        3,
        backbone=ResNet(stage_sizes=(1, 1, 1, 1), block=BasicBlock, width=0.25),
        features=16,
        border_features=8,
    )
    label = np.zeros((2, 64, 64), np.uint8)
    for index in range(2):
        label[index, 10 + 4 * index :, 20:40] = 1
        label[index, 44:, 30 - 5 * index : 52] = 2
    image = np.eye(3, dtype=np.uint8)[label] * 200
    shapes = trace(model)[1]
    tx = make_optimizer(shapes["params"], name="adam", weight_decay=0.0, head_lr_multiplier=1.0)
    state = create_state(model, tx, 0, (64, 64), variables=he_normal(shapes))
    step = make_train_step(model, tx, schedule=lambda step: 3e-3, objective=Objective(losses))
    step = jax.jit(step, donate_argnums=0)
    for _ in range(80):
        state, metrics = step(state, {"image": image, "label": label})
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    pixels = normalize(image, model.normalization)
    outputs = jax.jit(train)(state.variables(), pixels)[0].auxiliary
    border = np.asarray(border_target(label, 3)) == 1
    for name in ("border_c2", "border_c3", "border_c4", "border_c5"):
        found = np.asarray(resize(outputs[name], (64, 64), align_corners=True))[..., 0] > 0
        both = float((found & border).sum())
        precision, recall = both / max(found.sum(), 1), both / border.sum()
        print(name, float(metrics["loss"]), precision, recall)
        assert 2 * precision * recall / (precision + recall) > 0.6
