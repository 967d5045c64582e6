"""What the process of a flow run loads: each of them pays for it, in seconds of its start and in memory."""

import subprocess
import sys


def test_flows_import_no_heavy_packages() -> None:
    heavy = {"jax", "flax", "scipy", "torch", "transformers", "datasets"}
    flows = "flows.stages, flows.nightly, flows.inspection, flows.ladder"
    code = f"import sys, {flows}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
