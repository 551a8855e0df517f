"""Two gloo processes on the CPU: contrastive terms see the rows of both, and gradients flow back to each."""

from pathlib import Path

import pytest
import torch.distributed

from tests.processes import in_two_processes


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_contrast_what_one_does(tmp_path):
    told = in_two_processes(Path(__file__).with_name("distributed.py"), tmp_path)
    assert told == ["info-nce holds", "align-uniform holds", "dinov2 holds"]
