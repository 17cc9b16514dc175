r"""What other people's code means by its arguments, its output and its times.

The paper's average velocity is ``u(z, r, t)`` with ``0 <= r <= t <= 1``, t = 1 noise, and ``t`` the time of ``z``. A
:class:`Convention` says how a network departs from that. With ``time="data_at_one"`` their times are one minus ours,

.. math:: t' = 1 - t, \quad r' = 1 - r \quad\Longrightarrow\quad
          v' = \frac{dz}{dt'} = -v, \qquad
          u' = \frac{1}{t' - r'}\int_{r'}^{t'} v'\,d\tau' = \frac{z_t - z_r}{-(t - r)} = -u,

and their ``h' = t' - r' = -(t - r)`` is negative: write ``-h`` for a network that is given the positive duration.
"""

from __future__ import annotations

from meanflow_ref.convention.adapters import TIME_SHAPES, TIMES, Adapted, Convention, adapted

__all__ = ["TIMES", "TIME_SHAPES", "Adapted", "Convention", "adapted"]
