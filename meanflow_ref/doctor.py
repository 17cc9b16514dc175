"""What is installed here, and how to cite."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from meanflow_ref import __version__

# Package -> the extra that brings it, "" for those that a plain install has.
_PACKAGES = {
    **dict.fromkeys(("torch", "numpy", "scipy", "sympy", "torchdiffeq", "matplotlib", "rich", "jaxtyping"), ""),
    **{"python-flint": "", "tyro": "train", "safetensors": "train", "scikit-learn": "train", "pillow": "train"},
    **{"tensorboard": "tensorboard", "pytest-benchmark": "bench", "jax": "jax"},
    **{"hypothesis": "dev", "mypy": "dev"},
}

BIBTEX = f"""\
@software{{meanflow_ref,
  title   = {{meanflow\\_ref: exact truth, a reference loss and proofs for MeanFlow}},
  author  = {{{{The meanflow\\_ref developers}}}},
  year    = {{2026}},
  version = {{{__version__}}},
  license = {{MIT}}
}}

@article{{geng2025meanflow,
  title   = {{Mean Flows for One-step Generative Modeling}},
  author  = {{Geng, Zhengyang and Deng, Mingyang and Bai, Xingjian and Kolter, J. Zico and He, Kaiming}},
  journal = {{arXiv preprint arXiv:2505.13447}},
  year    = {{2025}}
}}"""


def cite(arguments: argparse.Namespace) -> int:
    """Print BibTeX, the newest oracle's number and its digest."""
    from meanflow_ref.truth.golden.command import citation

    print(f"{BIBTEX}\n\n{citation()}")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Print versions and devices; 0 if a plain install is complete, 1 if something it needs is missing."""
    print(f"meanflow-ref {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    missing = False
    for package, extra in _PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = (
                f'not installed: pip install "meanflow-ref[{extra}]"' if extra else "MISSING: pip install meanflow-ref"
            )
            missing = missing or not extra
        print(f"  {package:18} {found}")
    try:
        import torch
    except ImportError:
        print("  devices            unknown: torch is missing")
        return 1
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"  devices            cpu ({torch.get_num_threads()} threads){''.join(f', {name}' for name in devices)}")
    return int(missing)
