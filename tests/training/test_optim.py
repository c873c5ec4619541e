import subprocess
import sys

import pytest


@pytest.mark.slow
def test_optimizers_do_not_import_dynamo() -> None:
    code = (
        "import sys, torch\n"
        "from mlp_dist.training.optim import build_optimizer\n"
        "from mlp_dist.recipes import get_recipe\n"
        "weight = torch.nn.Parameter(torch.ones(2))\n"
        "optimizer = build_optimizer(get_recipe('mnist-quick'), [weight])\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "optimizer.zero_grad()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
