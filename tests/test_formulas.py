"""The formulas run on every kind of number, and agree across them."""

from __future__ import annotations

import inspect
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from meanflow_ref import formulas

FUNCTIONS = [function for _, function in inspect.getmembers(formulas, inspect.isfunction)]


def arguments(function: Any) -> dict[str, Fraction]:
    """One rational value per parameter, all different; powers are integers so that Fraction stays exact."""
    names = list(inspect.signature(function).parameters)
    return {name: Fraction(2) if name == "power" else Fraction(3 + 2 * i, 7 + i) for i, name in enumerate(names)}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_formula_runs_on_fractions_sympy_numpy_and_torch(function: Any) -> None:
    values = arguments(function)
    exact = function(**values)
    assert isinstance(exact, Fraction)
    symbolic = function(**{name: sympy.Rational(x.numerator, x.denominator) for name, x in values.items()})
    assert Fraction(int(symbolic.p), int(symbolic.q)) == exact
    array = function(**{name: np.full(3, float(x)) for name, x in values.items()})
    tensor = function(**{name: torch.full((3,), float(x), dtype=torch.float64) for name, x in values.items()})
    # A handful of rounded operations on numbers of size one.
    np.testing.assert_allclose(array, float(exact), rtol=1e-13)
    np.testing.assert_allclose(tensor.numpy(), float(exact), rtol=1e-13)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_formula_runs_on_jax_arrays(function: Any) -> None:
    jnp = pytest.importorskip("jax.numpy")
    values = arguments(function)
    result = function(**{name: jnp.full(3, float(x)) for name, x in values.items()})
    np.testing.assert_allclose(np.asarray(result), float(function(**values)), rtol=1e-5)


def test_the_gain_of_the_average_is_the_gain_of_the_velocity_at_r_equal_t() -> None:
    # Rational schedule values: alpha = 3/5, sigma = 4/5, s = 1 give std 1, so nothing needs a square root.
    alpha, sigma, alpha_dot, sigma_dot = Fraction(3, 5), Fraction(4, 5), Fraction(-1, 3), Fraction(2, 7)
    average = formulas.gaussian_average_gain(1, alpha, alpha, sigma, sigma, alpha_dot, sigma_dot, 1, 1)
    assert average == formulas.gaussian_velocity_gain(1, alpha, sigma, alpha_dot, sigma * sigma_dot)


def test_the_puzzle_u_of_3_is_1() -> None:
    # 3.1 [u(3) + 0.1] = 3 u(3) + 0.1 * 4.1: speed 4.1 over the extra 0.1 raises the average by 0.1.
    u, r, t, t_next = Fraction(1), Fraction(0), Fraction(3), Fraction(31, 10)
    assert formulas.discrete_target(Fraction(41, 10), u + Fraction(1, 10), u, r, t, t_next) == u
