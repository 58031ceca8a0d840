"""Triton kernels against the torch kernels and plain matrices, on the CPU through Triton's interpreter.

They run in a process of their own: what Triton compiles for is decided when it is imported.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHECKS = Path(__file__).parent / "triton_checks.py"
pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed: pip install --no-deps triton"
)


def test_triton_kernels_agree_with_the_torch_kernels_values_and_gradients():
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, str(CHECKS)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] == "agree"
