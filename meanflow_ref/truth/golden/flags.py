"""What each flag of a case means, and the mistake that its cases catch (after the manner of Wycheproof).

Every mistake named here is a mutant in ``tests/truth/golden``, which the flagged cases must reject.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """A property of cases.

    Attributes:
        means: What such a case is.
        catches: The mistake that it is there to catch.

    """

    means: str
    catches: str


FIELD_FLAGS = {
    "ORDINARY": Flag(
        "an interval of ordinary length and a state drawn from the field's law",
        "a sign, a factor t - r, or r and t exchanged: all are visible where nothing else is difficult",
    ),
    "ONE_STEP": Flag(
        "r = 0 and t = 1, what one-step sampling evaluates",
        "the velocity at t = 1 taken for the average velocity",
    ),
    "LIMIT": Flag(
        "r = t, where u = v and both derivatives are half the acceleration along the trajectory",
        "0/0 from a division by t - r; the whole acceleration, or zero, for du/dt",
    ),
    "SHORT": Flag(
        "0 < t - r <= 1e-3, down to 1e-12",
        "u = (z - z_r)/(t - r) by a subtraction in floating point, which loses a digit for each decimal of t - r",
    ),
    "NEAR_DATA": Flag(
        "t below 0.05, where the state's law is nearly the data's",
        "a velocity or a score divided by sigma, which is near zero here",
    ),
    "NEAR_NOISE": Flag(
        "r above 0.95, where the data hardly show",
        "a velocity divided by alpha, which is near zero here",
    ),
    "FAR_TAIL": Flag(
        "a state 8 to 150 standard deviations from every mode",
        "densities or distribution functions outside the logarithm: they underflow, or round to 1",
    ),
    "SEPARATRIX": Flag(
        "a state near the boundary between modes, where the flow's Jacobian J is large",
        "a tolerance without 1 + |J|, which fails right code; a solver whose tolerance is not on the result",
    ),
    "NARROW_MODES": Flag(
        "modes of standard deviation 1/16 or less",
        "a solver of fixed steps, too coarse for a velocity that changes within a mode's width",
    ),
    "UNEQUAL_WEIGHTS": Flag(
        "components of unequal weight",
        "responsibilities without the component's weight",
    ),
    "UNEQUAL_WIDTHS": Flag(
        "components of unequal standard deviation",
        "responsibilities without the component's normalising constant",
    ),
    "OTHER_PATH": Flag(
        "a path that is not linear",
        "alpha = 1 - t and sigma = t, or their derivatives, written into the code",
    ),
    "GUIDED": Flag(
        "classifier-free guidance of scale omega/(1 - kappa)",
        "the unconditional velocity as the mean of class velocities by prior, not posterior, class weights; "
        "guided average velocities in place of the guided field's average velocity",
    ),
    "BFLOAT16_INPUTS": Flag(
        "z, r, t and all parameters are exact in bfloat16, hence in float32 and float64 too",
        "an error blamed on half precision that is not due to rounded inputs",
    ),
    "FLOAT32_INPUTS": Flag(
        "z, r, t and all parameters are exact in float32",
        "an error blamed on float32 that is not due to rounded inputs",
    ),
}

LOSS_FLAGS = {
    "ORDINARY": Flag(
        "a conditional target over an interval of ordinary length",
        "a sign of (t - r) du/dt, a tangent that is not (v, 0, 1), r and t exchanged",
    ),
    "LIMIT": Flag(
        "r = t, where the loss is flow matching",
        "a target that is not v when t - r = 0",
    ),
    "SHORT": Flag(
        "0 < t - r <= 1e-3",
        "a JVP by finite differences with a step longer than the interval",
    ),
    "WEIGHTED": Flag(
        "adaptive weight of power p > 0",
        "a gradient that flows through the weight, which belongs behind a stop-gradient",
    ),
    "STOP_GRADIENT": Flag(
        "r < t: the target depends on the network",
        "a gradient that flows through the target",
    ),
    "MEAN_NORM": Flag(
        "the squared error averaged over the coordinates",
        "a sum in its place, which the adaptive weight does not cancel",
    ),
    "IMPROVED": Flag(
        "improved MeanFlow: the tangent is the network's own u(z, t, t)",
        "the sample's velocity left as the tangent",
    ),
    "GUIDED": Flag(
        "the guided target omega v + kappa u(z,t,t|c) + (1 - omega - kappa) u(z,t,t)",
        "guidance in the target alone, with the sample's velocity left as the tangent",
    ),
    "NULL_LABEL": Flag(
        "a sample whose class was dropped",
        "guidance of a sample that has no class",
    ),
    "OTHER_PATH": Flag(
        "a path that is not linear",
        "z = (1 - t) x + t eps, or v = eps - x, written into the code",
    ),
    "BFLOAT16_INPUTS": Flag(
        "x, eps, r, t and the network's weights are exact in bfloat16, hence in float32 and float64 too",
        "an error blamed on half precision that is not due to rounded inputs",
    ),
    "FLOAT32_INPUTS": Flag(
        "x, eps, r, t and the network's weights are exact in float32",
        "an error blamed on float32 that is not due to rounded inputs",
    ),
}
