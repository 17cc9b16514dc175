"""The registry of equations: an id, where it stands, and how it reads.

Docstrings cite these ids (``Source: mf:6``); a test holds them to this table, and the proofs and reports print from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication."""

    key: str
    title: str
    authors: str
    year: int
    where: str


@dataclass(frozen=True)
class Equation:
    """One equation: ``id`` is ``paper:label``; ``latex`` reads in this library's letters (t = 1 is noise)."""

    id: str
    label: str
    latex: str

    @property
    def paper(self) -> Paper:
        """The publication that the id begins with."""
        return PAPERS[self.id.split(":")[0]]


PAPERS: dict[str, Paper] = {
    paper.key: paper
    for paper in (
        Paper(
            "mf",
            "Mean Flows for One-step Generative Modeling",
            "Geng, Deng, Bai, Kolter, He",
            2025,
            "arXiv:2505.13447",
        ),
        Paper(
            "fm",
            "Flow Matching for Generative Modeling",
            "Lipman, Chen, Ben-Hamu, Nickel, Le",
            2023,
            "arXiv:2210.02747",
        ),
        Paper("imf", "Improved Mean Flows", "Geng et al.", 2025, "arXiv:2512.02012"),
        Paper("fmm", "Flow Map Matching", "Boffi, Albergo, Vanden-Eijnden", 2024, "arXiv:2406.07507"),
        Paper(
            "alphaflow",
            "AlphaFlow: Understanding and Improving MeanFlow Models",
            "Zhang et al.",
            2025,
            "arXiv:2510.20771",
        ),
        Paper("ref", "This library's own derivations", "The meanflow_ref developers", 2026, "proofs/"),
    )
}

EQUATIONS: dict[str, Equation] = {
    equation.id: equation
    for equation in (
        Equation("fm:path", "conditional path", r"z_t=\alpha_t x+\sigma_t\varepsilon"),
        Equation("fm:conditional-velocity", "conditional velocity", r"v_t=\dot\alpha_t x+\dot\sigma_t\varepsilon"),
        Equation("mf:1", "eq. 1, marginal velocity", r"v(z_t,t)=\mathbb E[v_t\mid z_t]"),
        Equation("mf:2", "eq. 2, the flow", r"\frac{d}{dt}z_t=v(z_t,t)"),
        Equation("mf:3", "eq. 3, average velocity", r"u(z_t,r,t)=\frac1{t-r}\int_r^t v(z_\tau,\tau)\,d\tau"),
        Equation("mf:4", "eq. 4, displacement", r"(t-r)\,u(z_t,r,t)=\int_r^t v(z_\tau,\tau)\,d\tau"),
        Equation("mf:5", "eq. 5, its derivative in t", r"u(z_t,r,t)+(t-r)\frac{d}{dt}u(z_t,r,t)=v(z_t,t)"),
        Equation("mf:6", "eq. 6, MeanFlow identity", r"u(z_t,r,t)=v(z_t,t)-(t-r)\frac{d}{dt}u(z_t,r,t)"),
        Equation(
            "mf:7",
            "eq. 7, total derivative",
            r"\frac{d}{dt}u=\frac{dz_t}{dt}\partial_z u+\frac{dr}{dt}\partial_r u+\frac{dt}{dt}\partial_t u",
        ),
        Equation(
            "mf:8",
            "eq. 8, as a JVP",
            r"\frac{d}{dt}u=v\,\partial_z u+\partial_t u=\mathrm{JVP}_u[(z,r,t);(v,0,1)]",
        ),
        Equation(
            "mf:9",
            "eq. 9, loss",
            r"\mathcal L=\mathbb E\lVert u_\theta(z_t,r,t)-\mathrm{sg}(u_{\mathrm{tgt}})\rVert^2",
        ),
        Equation(
            "mf:10",
            "eq. 10, target (marginal v)",
            r"u_{\mathrm{tgt}}=v(z_t,t)-(t-r)(v\,\partial_z u_\theta+\partial_t u_\theta)",
        ),
        Equation(
            "mf:11",
            "eq. 11, target (conditional v)",
            r"u_{\mathrm{tgt}}=v_t-(t-r)(v_t\,\partial_z u_\theta+\partial_t u_\theta)",
        ),
        Equation("mf:12", "eq. 12, sampling", r"z_r=z_t-(t-r)\,u(z_t,r,t)"),
        Equation(
            "mf:13",
            "eq. 13, guided field",
            r"v^{\mathrm{cfg}}(z_t,t\mid c)=\omega v(z_t,t\mid c)+(1-\omega)v(z_t,t)",
        ),
        Equation(
            "mf:14",
            "eq. 14, class mixture",
            r"v(z_t,t)=\mathbb E_{c\mid z_t}[v(z_t,t\mid c)]\quad\text{(posterior weights)}",
        ),
        Equation(
            "mf:15",
            "eq. 15, identity for the guided field",
            r"u^{\mathrm{cfg}}(z_t,r,t\mid c)=v^{\mathrm{cfg}}(z_t,t\mid c)-(t-r)\frac{d}{dt}u^{\mathrm{cfg}}(z_t,r,t\mid c)",
        ),
        Equation(
            "mf:16",
            "eq. 16, guided field by u",
            r"v^{\mathrm{cfg}}(z_t,t\mid c)=\omega v(z_t,t\mid c)+(1-\omega)u^{\mathrm{cfg}}(z_t,t,t)",
        ),
        Equation(
            "mf:17",
            "eq. 17, guided loss",
            r"\mathcal L=\mathbb E\lVert u^{\mathrm{cfg}}_\theta(z_t,r,t\mid c)-\mathrm{sg}(u_{\mathrm{tgt}})\rVert^2",
        ),
        Equation(
            "mf:18",
            "eq. 18, guided target",
            r"u_{\mathrm{tgt}}=\tilde v_t-(t-r)(\tilde v_t\,\partial_z u^{\mathrm{cfg}}_\theta+\partial_t u^{\mathrm{cfg}}_\theta)",
        ),
        Equation(
            "mf:19",
            "eq. 19, guided sample velocity",
            r"\tilde v_t=\omega v_t+(1-\omega)u^{\mathrm{cfg}}_\theta(z_t,t,t)",
        ),
        Equation(
            "mf:20",
            "eq. 20, improved guidance, field",
            r"v^{\mathrm{cfg}}=\omega v(\cdot\mid c)+\kappa u^{\mathrm{cfg}}(z_t,t,t\mid c)+(1-\omega-\kappa)u^{\mathrm{cfg}}(z_t,t,t);"
            r"\ \omega'=\omega/(1-\kappa)",
        ),
        Equation(
            "mf:21",
            "eq. 21, improved guidance, sample",
            r"\tilde v_t=\omega v_t+\kappa u^{\mathrm{cfg}}_\theta(z_t,t,t\mid c)+(1-\omega-\kappa)u^{\mathrm{cfg}}_\theta(z_t,t,t)",
        ),
        Equation("mf:22", "adaptive weight", r"w=(\lVert\Delta\rVert_2^2+c)^{-p}"),
        Equation("mf:consistency", "consistency of u, any s", r"(t-r)u(z_t,r,t)=(s-r)u(z_s,r,s)+(t-s)u(z_t,s,t)"),
        Equation("mf:limit", "boundary", r"\lim_{r\to t}u(z_t,r,t)=v(z_t,t)"),
        Equation(
            "mf:B3",
            "App. B.3, sufficiency",
            r"S=(t-r)u,\ \dot S=v,\ S|_{t=r}=0\Rightarrow u=\frac1{t-r}\int_r^t v",
        ),
        Equation(
            "imf:velocity",
            "improved MeanFlow",
            r"V=u_\theta+(t-r)\,\mathrm{sg}\big(\tfrac{d}{dt}u_\theta\big)",
        ),
        Equation("fmm:lagrangian", "Lagrangian form", r"u(z_t,r,t)=v(z_r,r)+(t-r)\,\partial_r u(z_t,r,t)"),
        Equation(
            "alphaflow:discrete",
            "discrete identity",
            r"u(r,t)=\bar v_{[t,t']}-(t'-r)\frac{u(r,t')-u(r,t)}{t'-t}",
        ),
        Equation(
            "ref:gaussian",
            "Gaussian data",
            r"u=\mathrm{DD}(\alpha)m+\frac{s\,\mathrm{DD}(\alpha)(\alpha_t+\alpha_r)+\mathrm{DD}(\sigma)(\sigma_t+\sigma_r)}"
            r"{\sqrt{\lambda_t}(\sqrt{\lambda_t}+\sqrt{\lambda_r})}(z-\alpha_t m),\ \lambda=\alpha^2 s+\sigma^2",
        ),
        Equation("ref:quantile", "1-D quantile transport", r"\phi_{t\to r}=F_r^{-1}\circ F_t,\ \partial_tF_t=-p_tv"),
        Equation(
            "ref:segment",
            "1-D average velocity along a segment",
            r"u(z,r,t)=\frac{\int_0^1p_\tau(y)v(y,\tau)\,d\theta}{\int_0^1p_\tau(y)\,d\theta},"
            r"\ (y,\tau)=(1-\theta)(\phi_{t\to r}(z),r)+\theta(z,t)",
        ),
        Equation(
            "ref:logdet",
            "log det of the flow map",
            r"\log\det\partial_z\phi_{t\to r}(z)=\log p_t(z)-\log p_r(\phi_{t\to r}(z))",
        ),
        Equation(
            "ref:transfer",
            "schedule transfer",
            r"z^{\alpha\sigma}_t=c_tz^{\mathrm{lin}}_{S_t},\ c=\alpha+\sigma,\ S=\sigma/(\alpha+\sigma)",
        ),
        Equation(
            "ref:covariance",
            "law of the target",
            r"\mathrm{Cov}(u_{\mathrm{tgt}}\mid z)=\Phi\,\mathrm{Cov}(v_t\mid z)\,\Phi^\top,\ \Phi=I-(t-r)\partial_zu",
        ),
        Equation("ref:u-ode", "u-space ODE", r"\dot w=v(z-hw,\,t-hs),\ w(0)=0,\ u=w(1),\ h=t-r"),
        Equation(
            "ref:acceleration",
            "du/dt at r = t",
            r"\lim_{r\to t}\tfrac{d}{dt}u=\tfrac12(\partial_zv\,v+\partial_tv)",
        ),
        Equation(
            "ref:shell",
            "spherical shell",
            r"v=\big(\dot\sigma z+(\dot\alpha\sigma-\alpha\dot\sigma)\,\mathbb E[x\mid z]\big)/\sigma",
        ),
        Equation("ref:points", "point masses", r"\gamma_i\propto w_i\exp(-|z-\alpha x_i|^2/2\sigma^2)"),
    )
}


def equation(id: str) -> Equation:
    """Return the equation ``id``, e.g. ``"mf:6"``; raises ``KeyError`` with the nearest id for an unknown one."""
    if id in EQUATIONS:
        return EQUATIONS[id]
    from difflib import get_close_matches

    near = get_close_matches(id, EQUATIONS, n=1)
    raise KeyError(f"no equation {id!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
