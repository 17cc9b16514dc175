"""Samplers: found by ``check_sampler``, which hands over the exact u and wants the exact data."""

from __future__ import annotations

from meanflow_ref.kit.catalogue.page import Page
from meanflow_ref.kit.catalogue.sister_effects import effect

_LOOP = """for i in range(n):
    t, r = 1 - i / n, 1 - (i + 1) / n
    z = z - (t - r) * u(z, r, t)"""

PAGES = (
    Page(
        name="WRONG_END",
        part="sampler",
        title="The network is told that the state is at the other end of the step",
        symptom="One step gives blurred or collapsed samples; four steps look plausible, and centred data hide it.",
        wrong="z = z - (t - r) * u(z, t, r)   # or u(z, r, r): the state is at t",
        right="z = z - (t - r) * u(z, r, t)   # z is the state at t, r is where the step ends",
        cause="u(z, r, t) belongs to the state at t, the later time. Code that swaps the two times, or names them "
        "start and end, hands over the noise as if it were data. The commonest sampler bug in public code.",
        remedy=_LOOP,
        effect=effect("WRONG_END"),
    ),
    Page(
        name="STEP_SIGN",
        part="sampler",
        title="The state moves away from the data, or is replaced by u",
        symptom="Samples are noise of twice the size, or look like noise minus data.",
        wrong="z = z + (t - r) * u(z, r, t)   # or z = t * u(z, 0, t)",
        right="z = z - (t - r) * u(z, r, t)",
        cause="Flow-matching code with v = x - eps adds; MeanFlow's v = eps - x points to the noise, so that a step to "
        "smaller times subtracts. Or the old state was left out.",
        remedy=_LOOP,
        effect=effect("STEP_SIGN"),
    ),
    Page(
        name="DIRECTION_REVERSED",
        part="sampler",
        title="The sampler runs from t = 0 to t = 1, while the noise is at t = 1",
        symptom="Samples look like noise, however good the loss was.",
        wrong="for t, r in zip(grid[:-1], grid[1:]): ...   # grid = linspace(0, 1, n + 1)",
        right="grid = linspace(1, 0, n + 1)",
        cause="Sampler and training come from code with opposite directions of time. If your noise is at t = 0 by "
        "intention, say so: time_direction='data_at_one'.",
        remedy=_LOOP,
        effect=effect("DIRECTION_REVERSED"),
    ),
    Page(
        name="MULTISTEP_IS_EULER",
        part="sampler",
        title="The steps use u(z, t, t), the instantaneous velocity",
        symptom="More steps make samples better, as in flow matching; few steps are no better than flow matching's.",
        wrong="z = z - dt * u(z, t, t)         # h = 0 in every call",
        right="z = z - (t - r) * u(z, r, t)",
        cause="With r = t the network returns v, and the loop is Euler's method. Seen where the multi-step sampler was "
        "kept from flow-matching code, or where a network that wants h = t - r is given 0.",
        remedy=_LOOP,
        effect=effect("MULTISTEP_IS_EULER"),
    ),
    Page(
        name="STEP_SIZE",
        part="sampler",
        title="The step taken is not the step that the network was asked about",
        symptom="One step is right; with more steps samples overshoot or stop between noise and data.",
        wrong="z = z - u(z, r, t)               # or z - (1 / n) * u with other times; or a last step left out",
        right="z = z - (t - r) * u(z, r, t)",
        cause="The factor t - r is 1 in one step and was forgotten for more, or the grid of times and the step size "
        "come from two places, or the loop ends before t = 0.",
        remedy=_LOOP,
        effect=effect("STEP_SIZE"),
    ),
    Page(
        name="R_NOT_NEXT_TIME",
        part="sampler",
        title="r is not the time at which the next step begins",
        symptom="One step is right; more steps make samples worse.",
        wrong="z = z - (1 / n) * u(z, 0, t)     # the mean velocity down to 0, used for a part of the way",
        right="z = z - (t - r) * u(z, r, t)     # r is the next t",
        cause="The one-step call u(z, 0, 1) was put into a loop with r left at 0. (Jumping to 0 and adding new noise "
        "is another sampler, and is recognised.)",
        remedy=_LOOP,
        effect=effect("R_NOT_NEXT_TIME"),
    ),
    Page(
        name="WRONG_HEAD",
        part="sampler",
        title="The sampler steps with the velocity head instead of u",
        symptom="One step looks like one Euler step of flow matching.",
        wrong="_, v = net(z, r, t); z = z - (t - r) * v",
        right="u, _ = net(z, r, t); z = z - (t - r) * u",
        cause="Networks with two heads return (u, v), and the sampler took the second. v is an output for training.",
        remedy="u, _ = net(z, r, t)\nz = z - (t - r) * u",
        effect=effect("WRONG_HEAD"),
    ),
)
