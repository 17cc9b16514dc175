"""Guidance inside the target: found by ``check_guidance``, against the stated omega and kappa."""

from __future__ import annotations

from meanflow_ref.kit.catalogue.page import Page
from meanflow_ref.kit.catalogue.sister_effects import effect

_MIXTURE = """with torch.no_grad():
    u_null, u_label = net(z, t, t, null), net(z, t, t, y)
v_g = omega * v + kappa * u_label + (1 - omega - kappa) * u_null
v_g = torch.where(y == null, v, v_g)            # rows without a class
u, du_dt = torch.func.jvp(lambda z, r, t: net(z, r, t, y), (z, r, t), (v_g, zeros, ones))
target = (v_g - (t - r) * du_dt).detach()"""

PAGES = (
    Page(
        name="GUIDED_TARGET_UNGUIDED_TANGENT",
        part="guidance",
        title="The target is guided, the tangent of the derivative is not",
        symptom="Guidance that works in many steps and not in one.",
        wrong="jvp(net, (z, r, t), (v, 0, 1)); target = v_g - (t - r) * du_dt",
        right="jvp(net, (z, r, t), (v_g, 0, 1))",
        cause="The state of the guided flow moves with the guided velocity, which was put into the target alone. "
        "Source: mf:18.",
        remedy=_MIXTURE,
        effect=effect("GUIDED_TARGET_UNGUIDED_TANGENT"),
    ),
    Page(
        name="NULL_BRANCH_CONDITIONAL",
        part="guidance",
        title="The null branch is given the labels",
        symptom="The guidance scale changes nothing.",
        wrong="u_null = net(z, t, t, y)",
        right="u_null = net(z, t, t, torch.full_like(y, null))",
        cause="A default argument, or a wrapper that fills the label in. With one network in both places the mixture's "
        "fixed point is the conditional velocity at every omega.",
        remedy=_MIXTURE,
        effect=effect("NULL_BRANCH_CONDITIONAL"),
    ),
    Page(
        name="KAPPA_MISSING",
        part="guidance",
        title="kappa is missing, in its own term or in the null weight",
        symptom="The effective scale is omega, not omega/(1 - kappa); or the weights do not add up to 1.",
        wrong="v_g = omega * v + (1 - omega) * u_null      # kappa stated as 0.5",
        right="v_g = omega * v + kappa * u_label + (1 - omega - kappa) * u_null",
        cause="Equation 19 was written and the scales of equation 21 were used, or the null weight stayed 1 - omega.",
        remedy=_MIXTURE,
        effect=effect("KAPPA_MISSING"),
    ),
    Page(
        name="GUIDANCE_LOST_ON_R_EQ_T",
        part="guidance",
        title="Rows with r = t are not guided",
        symptom="Guidance is weaker than stated, and depends on the share of r = t.",
        wrong="v_target = torch.where(r < t, v_g, v)",
        right="v_target = v_g in both",
        cause="The rows with r = t are computed by a flow-matching branch that knows nothing of guidance. They train "
        "the very u(z, t, t) that the other rows read as their guided velocity.",
        remedy=_MIXTURE,
        effect=effect("GUIDANCE_LOST_ON_R_EQ_T"),
    ),
    Page(
        name="GUIDANCE_ON_NULL_ROWS",
        part="guidance",
        title="Rows without a class are guided too",
        symptom="At the fixed point nothing: guided with itself, the unconditional velocity is itself.",
        wrong="v_g in all rows",
        right="torch.where(y == null, v, v_g)",
        cause="The mask is left out. The official code takes v in these rows; with weight omega the variance of the "
        "target is omega squared times as large.",
        remedy=_MIXTURE,
        effect=effect("GUIDANCE_ON_NULL_ROWS"),
        severity="note",
    ),
    Page(
        name="GUIDANCE_INTERVAL",
        part="guidance",
        title="Other times are guided than those stated",
        symptom="Results differ from a paper's with the same settings.",
        wrong="(r >= low) & (r <= high), or no mask at all",
        right="(t >= low) & (t <= high)",
        cause="The interval is applied to r, to the other direction of time, or not at all.",
        remedy="rows = (t >= low) & (t <= high) & (y != null)\nv_g = torch.where(rows[:, None], v_g, v)",
        effect=effect("GUIDANCE_INTERVAL"),
    ),
)
