"""Softmax and sigmoid equal their definitions, also where exponentials leave the range of floats."""

import numpy as np
import pytest
import torch

from mpvss.engine.activations import sigmoid, softmax

pytestmark = pytest.mark.filterwarnings("error")


def logits(*shape, scale=5.0):
    return np.float32(scale) * np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize(("shape", "axis"), [((7, 5), 1), ((7, 5), 0), ((4, 6, 9), 0), ((3, 1), 1)])
@pytest.mark.parametrize("scale", [0.1, 5.0, 300.0])
def test_softmax_equals_that_of_torch_and_adds_up_to_one(shape, axis, scale):
    given = logits(*shape, scale=scale)
    copy = given.copy()
    probability = softmax(given, axis)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, torch.from_numpy(given).softmax(axis), atol=1e-6)
    np.testing.assert_allclose(probability.sum(axis), 1, atol=1e-6)
    np.testing.assert_array_equal(given, copy)


def test_softmax_takes_a_class_of_minus_infinity_for_one_that_never_is():
    given = logits(6, 4)
    given[:, -1] = -np.inf
    probability = softmax(given, 1)
    np.testing.assert_allclose(probability[:, :-1], softmax(given[:, :-1], 1), atol=1e-7)
    assert not probability[:, -1].any()


@pytest.mark.parametrize("scale", [0.1, 5.0, 30.0])
def test_sigmoid_equals_its_definition(scale):
    given = logits(3, 17, 23, scale=scale)
    copy = given.copy()
    value = sigmoid(given)
    assert value.dtype == np.float32 and value.shape == given.shape
    np.testing.assert_allclose(value, 1 / (1 + np.exp(-given.astype(np.float64))), atol=1e-6)
    np.testing.assert_array_equal(given, copy)


def test_sigmoid_ends_at_zero_and_one():
    given = np.array([-np.inf, -1e30, -1000, -100, 0, 100, 1000, 1e30, np.inf], np.float32).reshape(1, 3, 3)
    np.testing.assert_allclose(sigmoid(given).ravel(), [0, 0, 0, 0, 0.5, 1, 1, 1, 1], atol=1e-30)


def test_sigmoid_takes_every_layout():
    given = logits(4, 6, 9)
    for laid_out in (np.asfortranarray(given), np.repeat(given, 2, 2)[..., ::2], np.flip(np.flip(given, 1).copy(), 1)):
        np.testing.assert_array_equal(sigmoid(laid_out), sigmoid(given))
