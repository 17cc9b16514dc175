"""Fields with an exact velocity, and with an exact average velocity where one is known."""

from meanflow_ref.fields.base import AbstractDataField, AbstractField
from meanflow_ref.fields.compose import Affine, Product
from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.fields.guided import ClassConditional, Guided
from meanflow_ref.fields.guided_gaussian import LinearGaussianGuided
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.fields.points import PointMasses
from meanflow_ref.fields.shell import Shell
from meanflow_ref.fields.transfer import Transferred
from meanflow_ref.fields.uniform import Uniform, UniformBoxes

__all__ = [
    "AbstractDataField",
    "AbstractField",
    "Affine",
    "ClassConditional",
    "Gaussian",
    "GaussianMixture",
    "Guided",
    "LinearGaussianGuided",
    "PointMasses",
    "Product",
    "Shell",
    "Transferred",
    "Uniform",
    "UniformBoxes",
]
