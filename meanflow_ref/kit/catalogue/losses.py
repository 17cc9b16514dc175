"""Losses: path, tangent, coefficient, gradient, weight and numerics; found by ``check_loss``."""

from __future__ import annotations

from meanflow_ref.kit.catalogue.loss_effects import effect
from meanflow_ref.kit.catalogue.page import Page

_JVP = "u, du_dt = torch.func.jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))"
_TARGET = "target = (v - (t - r) * du_dt).detach()"
_WEIGHT = """s = ((u - target) ** 2).flatten(1).sum(1)
loss = (s / (s.detach() + c) ** p).mean()"""


def _page(
    name: str, part: str, title: str, symptom: str, wrong: str, right: str, cause: str, remedy: str, note: bool = False
) -> Page:
    return Page(name, part, title, symptom, wrong, right, cause, remedy, effect(name), "note" if note else "wrong")


PAGES = (
    # ------------------------------------------------------------ path
    _page("VELOCITY_SIGN", "path", "The velocity points the other way along the path",
          "The loss falls as usual, at weight power 1 to the same value; samples are noise.",
          "v = x - eps                    # while z = (1 - t) * x + t * eps", "v = eps - x                    # dz/dt",
          "Flow-matching code with data at t = 1 has v = x - eps. The path was turned round and the velocity was not.",
          "v = eps - x   # the derivative by t of z = (1 - t) * x + t * eps"),
    _page("PATH_TANGENT_MISMATCH", "path", "The velocity is not the derivative of the path that the states lie on",
          "Training is stable; samples keep a bias that no schedule removes.",
          "z = cos(a) * x + sin(a) * eps; v = eps - x", "v = da/dt * (cos(a) * eps - sin(a) * x)",
          "Path and velocity come from different places, or the data are normalised in one of them only.",
          "z = alpha(t) * x + sigma(t) * eps\nv = alpha_dot(t) * x + sigma_dot(t) * eps"),
    _page("TIME_REVERSED", "path", "Data are at t = 1", "Nothing: a legal convention. Your sampler must agree with it.",
          "", "", "Many flow-matching libraries have noise at t = 0; the paper has it at t = 1.",
          "mf.sample(net, noise, convention=mf.Convention(..., time='data_at_one'))", note=True),
    # ------------------------------------------------------------ tangent
    _page("R_AND_T_SWAPPED", "tangent", "The derivative is taken by r in place of t",
          "The loss falls; one-step samples are blurred.",
          "jvp(net, (z, r, t), (v, one, zero))", "jvp(net, (z, r, t), (v, zero, one))",
          "The official code lists the times as (t, r), the paper as (r, t); a tangent was copied from the other order.", _JVP),
    _page("R_MOVES", "tangent", "r moves along with t in the derivative",
          "As with swapped tangents; seen where a network is given h = t - r.",
          "jvp(net, (z, t, h), (v, one, zero))   # dh = 0 means that r moves", "jvp(net, (z, t, h), (v, one, one))    # r fixed: dh/dt = 1",
          "With h = t - r held fixed, r = t - h moves with t. The tangent of h must be 1.",
          "u, du_dt = torch.func.jvp(lambda z, t, r: net(z, t, t - r), (z, t, r), (v, one, zero))"),
    _page("SPATIAL_TANGENT_MISSING", "tangent", "The term v d_z u is missing from du/dt",
          "Few-step samples are no better than Euler's steps.", "jvp(net, (z, r, t), (0 * v, zero, one))", "jvp(net, (z, r, t), (v, zero, one))",
          "du/dt was read as a partial derivative; it is the total one along the flow.", _JVP),
    _page("TIME_TANGENT_MISSING", "tangent", "The term d_t u is missing from du/dt", "As with a missing spatial term.",
          "jvp(net, (z, r, t), (v, zero, zero))", "jvp(net, (z, r, t), (v, zero, one))",
          "Only z was differentiated, or the time was detached or made an integer on the way to the network.", _JVP),
    _page("TRANSPOSED_JACOBIAN", "tangent", "A vector-Jacobian product stands where a Jacobian-vector product should",
          "In one dimension nothing is wrong; in more, samples are smeared.",
          "grad(u, z, v)[0]               # J^T v\ngrad(u.sum(), z)[0] * v        # sums over outputs",
          "torch.func.jvp(...)[1]         # J v",
          "Reverse mode gives J^T v. grad(u.sum(), z) * v is J v only if every output depends on its own input alone.", _JVP),
    _page("TANGENT_NOT_VELOCITY", "tangent", "The tangent along z is not the velocity of the target",
          "Samples are biased; the size depends on what stands there.", "jvp(net, (z, r, t), (z, zero, one))", "jvp(net, (z, r, t), (v, zero, one))",
          "dz/dt along the flow is the velocity. Seen: the state, the noise, a velocity of the other sign, a rescaled one. The "
          "network's own u(z, t, t) is right (improved MeanFlow).", _JVP),
    _page("R_DERIVATIVE_AT_WRONG_POINT", "tangent", "The derivative is taken at another (z, r, t) than the prediction",
          "A linear network would not show it; u is biased for long intervals.",
          "_, du_dt = jvp(net, (z, t, t), ...); u = net(z, r, t)", "both at (z, r, t)",
          "Two passes whose arguments are written out twice, and differ.", _JVP),
    # ------------------------------------------------------------ coefficient
    _page("COEFFICIENT", "coefficient", "A term of the target has the wrong weight", "u is between v and the right average velocity.",
          "target = v - 0.5 * (t - r) * du_dt   # or no du_dt at all", _TARGET,
          "A term was scaled, warmed up and never finished, or left out: then rows with r != t train v, not u.", _TARGET),
    _page("INTERVAL_SIGN", "coefficient", "The derivative is added, not subtracted", "The loss may grow; samples diverge with the interval.",
          "target = v + (t - r) * du_dt", "target = v - (t - r) * du_dt", "(r - t) for (t - r), or the sign of another convention.", _TARGET),
    _page("INTERVAL_NOT_T_MINUS_R", "coefficient", "The derivative's factor is not t - r", "u is right where the factor happens to be right.",
          "target = v - t * du_dt      # or du_dt alone, or (t - r)**2", "target = v - (t - r) * du_dt",
          "The factor was dropped, clamped from below, or is a duration of something else. Source: mf:6.", _TARGET),
    # ------------------------------------------------------------ gradient
    _page("TARGET_NOT_DETACHED", "gradient", "The target has a gradient",
          "A LOWER loss than the right one, slower steps, and another minimiser.", "target = v - (t - r) * du_dt", _TARGET,
          "Without a stop-gradient the loss trains the derivative too, with the noise of the sample's velocity in it.", _TARGET),
    _page("PREDICTION_DETACHED", "gradient", "The prediction has no gradient", "The loss does not change, or only the target moves.",
          "with torch.no_grad():\n    u, du_dt = jvp(...)", "u with its graph, the target without",
          "no_grad or detach around both outputs of the jvp, or torch.autograd.functional.jvp without create_graph.",
          "with torch.no_grad():\n    _, du_dt = torch.func.jvp(...)\nu = net(z, r, t)"),
    _page("DROPOUT_MISMATCH", "gradient", "Two passes draw different random numbers",
          "With dropout on, du/dt belongs to another network than u. Without random layers nothing is wrong.",
          "_, du_dt = jvp(...)\nu = net(z, r, t)            # another mask", "the same generator state for both, or one pass",
          "Each pass advances the generator. Check with dropout=True if the network that you train has random layers.",
          "state = torch.get_rng_state()\n_, du_dt = jvp(...)\ntorch.set_rng_state(state)\nu = net(z, r, t)"),
    # ------------------------------------------------------------ weight
    _page("WEIGHT_POWER", "weight", "The adaptive weight has another power than it should", "The loss is dominated by its largest errors, or by none.",
          "w = (s + c) ** p", "w = (s + c) ** -p", "The sign was lost, the norm was taken for its square, or p is not the one asked for.", _WEIGHT),
    _page("WEIGHT_SQUARED_TWICE", "weight", "The squared norm is squared again", "At p = 1 almost nothing; at p = 1/2 plain least squares.",
          "loss = s**2 / (s.detach()**2 + c)**p        # s is |u - target|^2 already", "loss = s / (s.detach() + c)**p",
          "A variable named loss or delta was the squared norm already. Effective power 2p - 1.", _WEIGHT),
    _page("WEIGHT_PER_ELEMENT", "weight", "The weight differs between the elements of a row",
          "Large elements of a datum count less than small ones; the minimiser is no conditional mean even far from the floor.",
          "e = (u - target)**2; loss = (e / (e.detach() + c)**p).mean()", "s = e.flatten(1).sum(1), one weight a row",
          "The reduction was left to the last line. An L1 or Huber metric is reported as a note.", _WEIGHT),
    _page("WEIGHT_NOT_DETACHED", "weight", "The weight has a gradient", "At p = 1 the gradient fades as 1/S^2: nothing far off is trained.",
          "loss = s / (s + c)**p", "loss = s / (s.detach() + c)**p", "A missing .detach(). For p < 1 direction and power stay, the scale is 1 - p: a note.", _WEIGHT),
    _page("WEIGHT_BATCH_COUPLED", "weight", "The weight of a row depends on the other rows", "The loss depends on the batch size; one bad row silences the rest.",
          "w = w / w.mean()               # or a weight of the batch's mean error", "one weight a row, of that row alone",
          "Weights were normalised over the batch, or the error was averaged before the weight.", _WEIGHT),
    _page("REDUCTION_MEAN", "weight", "The error is a mean over the elements, not a sum", "Nothing, except that c acts as c times the number of elements.",
          "s = ((u - target)**2).flatten(1).mean(1)", "s = ((u - target)**2).flatten(1).sum(1)",
          "A legal choice of several codes; with another c than the paper's it is the same loss.", _WEIGHT, note=True),
    # ------------------------------------------------------------ numerics
    _page("TARGET_CLIPPED", "numerics", "The target or its derivative is clamped", "Stable training and a bias that shows where u is large.",
          "target = target.clamp(-5, 5)", _TARGET, "Clamps against spikes cut the tail off a mean. Source: mf:10.",
          "clip the gradient's norm instead: torch.nn.utils.clip_grad_norm_"),
    _page("TARGET_LOW_PRECISION", "numerics", "The derivative runs in low precision", "Spikes and NaN after many thousand steps; du/dt is noise near r = t.",
          "with torch.autocast(..., dtype=torch.bfloat16):\n    u, du_dt = jvp(...)", "the jvp in float32",
          "bfloat16 has eight bits: the derivative of a stiff time embedding loses most of its digits. Source: mf:8.",
          "with torch.autocast(device, enabled=False):\n    u, du_dt = torch.func.jvp(...)"),
    _page("FINITE_DIFFERENCE_COARSE", "numerics", "The difference quotient is too coarse", "As a biased target; invisible on linear networks.",
          "du_dt = (net(z + h * v, r, t + h) - u) / h       # h = 0.01", "du_dt = (net(z + h * v, r, t + h) - net(z - h * v, r, t - h)) / (2 * h)",
          "A one-sided difference is off by h/2 times the second derivative.", _JVP),
    # ------------------------------------------------------------ none fits
    _page("UNKNOWN_FORMULA", "none fits", "The target is no formula of the catalogue", "The numbers measured are in the report.",
          "", _TARGET, "Read the measured factors: each should be z +1 (the velocity), r 0, t +1.", _TARGET),
    _page("INCONCLUSIVE", "none fits", "An essential probe could not run", "The report says which and why; this is never a pass.",
          "", "", "Data that are shuffled or coupled, a path of no known kind, a weight of no known law.",
          "Check a smaller part of the loss, or give call=, shape=, attributes=.", note=True),
)  # fmt: skip
