"""Two gloo processes on the CPU train the same adapters as one process, under DDP and under FSDP2."""

from pathlib import Path

import pytest
import torch.distributed

from tests.processes import in_two_processes


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_what_one_does(tmp_path):
    told = in_two_processes(Path(__file__).with_name("distributed.py"), tmp_path)
    assert told[:2] == ["ddp holds", "fsdp holds"]
