import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxseg.errors import ConfigError
from flaxseg.training import optimizer
from flaxseg.training.optimizer import make_optimizer, parameter_kinds

RATES = [0.1, 0.1, 0.03, 0.2, 0.001]


def tree(seed: int) -> dict:
    """Parameters, or their gradient, of a model with all kinds of them."""
    rng = np.random.default_rng(seed)

    def values(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "backbone": {
            "stem": {"kernel": values(3, 3, 2, 4), "bias": values(4)},
            "bn": {"scale": values(4), "bias": values(4)},
        },
        "head": {
            "conv": {"kernel": values(1, 1, 4, 2), "bias": values(2)},
            "norm": {"bias": values(4)},
            "bases": values(2, 3),
        },
    }


def train(params: dict, tx: optax.GradientTransformation, rates=RATES) -> dict:
    """Parameters after a step with the gradient `tree(t)` at each rate."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    for t, rate in enumerate(rates):
        change, state = update(tree(t), state, params)
        params = jax.tree.map(lambda p, c, rate=rate: p - rate * c, params, change)
    return params


def train_torch(params: dict, kind: str, options: dict, groups: dict, clip: float = 0.0) -> dict:
    """The same with torch.optim; `groups` gives (multiplier, decay) by path."""
    torch = pytest.importorskip("torch")
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    tensors = {
        path: torch.tensor(np.array(leaf), requires_grad=True) for path, leaf in flat.items()
    }
    optim = getattr(torch.optim, kind)(
        [{"params": [tensors[p]], "weight_decay": groups[p][1]} for p in flat], lr=1.0, **options
    )
    for t, rate in enumerate(RATES):
        for tensor, gradient in zip(tensors.values(), jax.tree.leaves(tree(t)), strict=True):
            tensor.grad = torch.tensor(np.array(gradient))
        if clip:
            torch.nn.utils.clip_grad_norm_(tensors.values(), clip)
        for group, path in zip(optim.param_groups, flat, strict=True):
            group["lr"] = rate * groups[path][0]
        optim.step()
    leaves = [tensor.detach().numpy() for tensor in tensors.values()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def all_close(got: dict, wanted: dict, atol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), got, wanted)


def uniform(value) -> dict:
    return {jax.tree_util.keystr(path): value for path, _ in jax.tree.leaves_with_path(tree(0))}


@pytest.mark.promotes("optax")
@pytest.mark.peer
@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("SGD", {"momentum": 0.9}, {"momentum": 0.9}),
        ("SGD", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ("SGD", {"momentum": 0.0}, {}),
        ("Adam", {"b1": 0.8, "b2": 0.95}, {"betas": (0.8, 0.95)}),
        ("AdamW", {"b1": 0.8, "b2": 0.95}, {"betas": (0.8, 0.95)}),
    ],
)
def test_five_steps_with_decay_and_a_changing_rate_equal_torch(kind, ours, theirs):
    params = tree(99)
    tx = make_optimizer(
        params, name=kind.lower(), weight_decay=0.05, decay_bn_and_bias=True, **ours
    )
    all_close(train(params, tx), train_torch(params, kind, theirs, uniform((1.0, 0.05))))


@pytest.mark.promotes("optax")
@pytest.mark.peer
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_multipliers_decay_mask_and_clipping_equal_torch_parameter_groups(kind):
    params = tree(99)
    tx = make_optimizer(
        params,
        name=kind.lower(),
        weight_decay=0.05,
        head_lr_multiplier=10.0,
        bias_lr_multiplier=2.0,
        grad_clip_norm=1.5,
    )
    groups = {
        "['backbone']['stem']['kernel']": (1.0, 0.05),
        "['backbone']['stem']['bias']": (2.0, 0.0),
        "['backbone']['bn']['scale']": (1.0, 0.0),
        "['backbone']['bn']['bias']": (1.0, 0.0),
        "['head']['conv']['kernel']": (10.0, 0.05),
        "['head']['conv']['bias']": (20.0, 0.0),
        "['head']['norm']['bias']": (10.0, 0.0),
        "['head']['bases']": (10.0, 0.05),
    }
    options = {"momentum": 0.9} if kind == "SGD" else {}
    # Adam moves a bias of the head by up to 20 * 0.2 a step: 2e-5 is a few float32 roundings of it.
    all_close(train(params, tx), train_torch(params, kind, options, groups, clip=1.5), atol=2e-5)


def test_momentum_by_hand():
    params = {"head": {"kernel": jnp.float32(1.0)}}
    tx = make_optimizer(params, momentum=0.5, weight_decay=0.1)
    state = tx.init(params)
    first, state = tx.update({"head": {"kernel": jnp.float32(2.0)}}, state, params)
    assert first["head"]["kernel"] == pytest.approx(2.0 + 0.1 * 1.0)
    second, _ = tx.update({"head": {"kernel": jnp.float32(0.0)}}, state, params)
    assert second["head"]["kernel"] == pytest.approx(0.5 * 2.1 + 0.1 * 1.0)


def test_only_weights_decay_unless_asked():
    params = tree(3)
    zero = jax.tree.map(jnp.zeros_like, params)

    def changed(**options):
        tx = make_optimizer(params, momentum=0.0, weight_decay=0.5, **options)
        update = tx.update(zero, tx.init(params), params)[0]
        return jax.tree.map(lambda u, p: bool(np.allclose(u, 0.5 * p)), update, params)

    kinds = parameter_kinds(params)
    assert changed() == jax.tree.map(lambda kind: kind == "weight", kinds)
    assert all(jax.tree.leaves(changed(decay_bn_and_bias=True)))


def test_kinds_go_by_what_is_beside_a_parameter():
    assert parameter_kinds(tree(0)) == {
        "backbone": {
            "stem": {"kernel": "weight", "bias": "bias"},
            "bn": {"scale": "normalization", "bias": "normalization"},
        },
        "head": {
            "conv": {"kernel": "weight", "bias": "bias"},
            "norm": {"bias": "normalization"},
            "bases": "weight",
        },
    }


@pytest.mark.promotes("optax")
@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_frozen_parameters_do_not_move_and_do_not_count_in_the_norm(name):
    params = tree(99)
    options = {"name": name, "weight_decay": 0.1, "grad_clip_norm": 1.0}
    after = train(params, make_optimizer(params, frozen=("backbone", "head/norm"), **options))
    jax.tree.map(np.testing.assert_array_equal, after["backbone"], params["backbone"])
    np.testing.assert_array_equal(after["head"]["norm"]["bias"], params["head"]["norm"]["bias"])

    # The others move as if the frozen ones were not there.
    def head_only(tree):
        return {"head": {k: v for k, v in tree["head"].items() if k != "norm"}}

    small = head_only(params)
    tx = make_optimizer(small, **options)
    state = tx.init(small)
    for t, rate in enumerate(RATES):
        update, state = tx.update(head_only(tree(t)), state, small)
        small = jax.tree.map(lambda p, u, rate=rate: p - rate * u, small, update)
    all_close(head_only(after), small)


def test_frozen_gradients_that_are_not_finite_change_nothing():
    params = tree(0)
    tx = make_optimizer(params, frozen=("backbone",), grad_clip_norm=1.0)
    gradient = tree(1) | {"backbone": jax.tree.map(lambda x: x * jnp.nan, params["backbone"])}
    update, _ = tx.update(gradient, tx.init(params), params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(update["backbone"]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(update["head"]))


def test_frozen_takes_patterns_and_refuses_what_fits_nothing():
    params = tree(0)
    frozen = optimizer.frozen_parameters(params, ("*/bn", "head/conv/bias"))
    assert frozen["backbone"] == {
        "stem": {"kernel": False, "bias": False},
        "bn": {"scale": True, "bias": True},
    }
    assert frozen["head"]["conv"] == {"kernel": False, "bias": True}
    with pytest.raises(ConfigError, match=r"'backbon'.*Did you mean 'backbone'\?"):
        make_optimizer(params, frozen=("backbon",))


def test_state_is_float32_and_holds_no_learning_rate():
    params = tree(0)
    for name in optimizer.OPTIMIZERS:
        state = make_optimizer(params, name=name).init(params)
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert all(x.dtype == jnp.float32 for x in floats)
        assert len(floats) == (1 if name == "sgd" else 2) * len(jax.tree.leaves(params))


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"name is 'adamww'.*Did you mean 'adamw'\?"):
        make_optimizer(tree(0), name="adamww")


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigError) as error:
        make_optimizer(tree(0), momentum=1.0, weight_decay=-1.0, grad_clip_norm=np.inf, eps=0.0)
    for part in ("momentum is 1.0", "weight_decay is -1.0", "grad_clip_norm is inf", "eps is 0.0"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="nesterov needs momentum"):
        make_optimizer(tree(0), momentum=0.0, nesterov=True)


def test_examples():
    result = doctest.testmod(optimizer)
    assert result.attempted > 0
    assert result.failed == 0
