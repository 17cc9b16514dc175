"""Laws of times: found by ``check_times``, with a stated probability of a false alarm."""

from __future__ import annotations

from meanflow_ref.kit.catalogue.page import Page
from meanflow_ref.kit.catalogue.sister_effects import effect

_PAIR = """a, b = (torch.sigmoid(-0.4 + torch.randn(n)) for _ in range(2))
t, r = torch.maximum(a, b), torch.minimum(a, b)
r = torch.where(torch.rand(n) < 0.75, t, r)     # r = t in 75 % of the rows"""

PAGES = (
    Page(
        name="RATIO_INVERTED",
        part="times",
        title="The share of r = t is used as the share of r != t",
        symptom="Training is slower and noisier (or one-step samples are poor), with no error.",
        wrong="r = torch.where(torch.rand(n) < 0.25, t, r)   # 25 % was the share of r != t",
        right="r = torch.where(torch.rand(n) < 0.75, t, r)",
        cause="The paper quotes the share of r != t (25 %), public code has flags of either meaning, named "
        "`ratio`, `flow_ratio`, `data_proportion`.",
        remedy=_PAIR,
        effect=effect("RATIO_INVERTED"),
    ),
    Page(
        name="RATIO_MISMATCH",
        part="times",
        title="The share of r = t is not the one stated",
        symptom="Results differ from a paper's with the same settings.",
        wrong="t = min(t, t_masked) after the mask was applied",
        right="apply the mask once, last",
        cause="Sorting or clipping after the mask changes the share, or pairs become equal by rounding (bfloat16 makes "
        "0.3 % of pairs equal).",
        remedy=_PAIR,
        effect=effect("RATIO_MISMATCH"),
    ),
    Page(
        name="NEVER_R_NEQ_T",
        part="times",
        title="r = t in every row: the loss is flow matching",
        symptom="The loss falls as in flow matching; one-step samples are blurred averages.",
        wrong="r = t",
        right="r < t in a share of the rows",
        cause="A share of 100 %, or a shortcut for a warm-up phase that never ends.",
        remedy=_PAIR,
        effect=effect("NEVER_R_NEQ_T"),
    ),
    Page(
        name="NEVER_R_EQ_T",
        part="times",
        title="r = t in no row",
        symptom="Legal, and noisier: nothing anchors u(z, t, t) = v except by continuity.",
        wrong="",
        right="",
        cause="Chosen, or the mask was lost. The identity alone, without the rows at r = t, is satisfied by "
        "u + C/(t - r) as well; a smooth network rules that out.",
        remedy=_PAIR,
        effect=effect("NEVER_R_EQ_T"),
        severity="note",
    ),
    Page(
        name="R_GREATER_THAN_T",
        part="times",
        title="r > t in some rows",
        symptom="Half of the training goes to intervals that the sampler never asks for.",
        wrong="r, t = torch.rand(n), torch.rand(n)",
        right="r, t = torch.minimum(a, b), torch.maximum(a, b)",
        cause="The pair is not sorted, or the function returns (t, r) where (r, t) is read.",
        remedy=_PAIR,
        effect=effect("R_GREATER_THAN_T"),
    ),
    Page(
        name="TIMES_OUT_OF_RANGE",
        part="times",
        title="Times outside [0, 1]",
        symptom="States 1 - t < 0: data with the wrong sign and noise of more than unit variance.",
        wrong="t = torch.randn(n)               # or times multiplied by 1000 outside the network",
        right="t = torch.sigmoid(torch.randn(n))",
        cause="`randn` for `rand`, a logit-normal without its sigmoid, or times scaled where the path is computed.",
        remedy=_PAIR,
        effect=effect("TIMES_OUT_OF_RANGE"),
    ),
    Page(
        name="PER_BATCH_COIN",
        part="times",
        title="One coin (or one time) for a whole batch",
        symptom="The loss jumps between two levels from step to step.",
        wrong="r = t if torch.rand(()) < 0.75 else r",
        right="r = torch.where(torch.rand(n) < 0.75, t, r)",
        cause="A Python branch is shorter and saves the JVP in some steps. The gradient is right on average, with the "
        "variance of a sample of one.",
        remedy=_PAIR,
        effect=effect("PER_BATCH_COIN"),
    ),
    Page(
        name="MASKS_CORRELATED",
        part="times",
        title="Rows with r = t and rows with a dropped label coincide",
        symptom="Guidance at few steps is off: the unconditional u was trained at r = t alone.",
        wrong="r[: n_equal] = t[: n_equal]; label[: n_drop] = null",
        right="two independent random masks",
        cause="Both masks are made from the row's index. Then P(r != t | null label) is 0, or far from its share.",
        remedy="r = torch.where(torch.rand(n) < 0.75, t, r)\nlabel = torch.where(torch.rand(n) < 0.1, null, label)",
        effect=effect("MASKS_CORRELATED"),
    ),
    Page(
        name="LAW_MISMATCH",
        part="times",
        title="The times follow another law than the one stated",
        symptom="Results differ from a paper's with the same settings; few-step samples suffer first.",
        wrong="r = t * torch.rand(n)            # density 1/t below t, not a sorted pair",
        right="r, t = torch.minimum(a, b), torch.maximum(a, b)",
        cause="r drawn below t instead of sorting two draws, the sign of the logit's mean, a uniform law for a "
        "logit-normal one, or one fixed batch of times.",
        remedy=_PAIR,
        effect=effect("LAW_MISMATCH"),
    ),
)
