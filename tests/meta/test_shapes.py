"""The shapes in annotations are true: jaxtyping and beartype check them at run time, in a process of their own."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from jaxtyping import install_import_hook

hook = install_import_hook(
    ["meanflow_ref.fields", "meanflow_ref.truth", "meanflow_ref.objectives", "meanflow_ref.sampling",
     "meanflow_ref.models"], "beartype.beartype"
)
import torch
from meanflow_ref.verify import problems
from meanflow_ref.verify.rows_truth import _total_derivative

for name, build in problems.FAMILIES.items():
    field = build(problems.PATHS["trigonometric"])
    c = problems.cases(field, n=16, earliest=0.01)
    field.velocity(c.z, c.t), field.flow_map(c.z, c.t, c.r), field.average_velocity(c.z, c.r, c.t)
    field.jacobian(c.z, c.r, c.t), field.log_density(c.z, 0.5), field.velocity_covariance(c.z, c.t)
    field.log_det_jacobian(c.z, c.r, c.t), _total_derivative(field, c)

import meanflow_ref as mf

field = problems.planar_mixture()
c = problems.cases(field, n=16)
truth = mf.average_velocity(field, c.z, c.r, c.t, tol=1e-8, derivatives=True)
net = __import__("meanflow_ref.models.mlp", fromlist=["MLP"]).MLP(2, 16, 1).double()
terms = mf.meanflow_loss(net, c.z, c.z, c.r, c.t)
mf.sample(net, c.z, steps=2)
print("checked")
"""

MUTANT = """
from jaxtyping import Float, jaxtyped
from beartype import beartype
from torch import Tensor
import torch
from meanflow_ref._typing import State, Times

@jaxtyped(typechecker=beartype)
def wrong(z: State, t: Times) -> State:
    return z[..., :1] * t[..., None]

wrong(torch.zeros(4, 2), torch.zeros(4))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)


def test_annotated_shapes_hold_at_run_time() -> None:
    done = run(PROGRAM)
    assert done.stdout.strip() == "checked", done.stderr[-3000:]


def test_the_check_sees_a_wrong_shape() -> None:
    done = run(MUTANT)
    assert done.returncode != 0
    assert "TypeCheckError" in done.stderr
