"""Small training runs that die on demand, each in a process of its own.

`Run.start` forks from a server that has the libraries loaded and nothing else, so that a real process can be
killed for every file-system call of a checkpoint in little time. The process arms itself; the library knows
nothing of it.
"""

import builtins
import contextlib
import io
import multiprocessing
import os
import signal
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

import adaptome as ad
from adaptome.training.trainer import AdaptomeTrainer

KILLED = -signal.SIGKILL
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.training.killable"])


@dataclass(frozen=True)
class Run:
    """A run and the moment it dies.

    kill_step   after this optimizer step
    kill_save   in the checkpoint of this step ...
    kill_call   ... at its n-th call to the file system; half of what was to be written arrives
    shards      so many processes, over which FSDP shards the model
    """

    folder: Path
    kind: str = "bert"
    resume: bool | str = False
    kill_step: int = 0
    kill_save: int = 0
    kill_call: int = 0
    signal: int = signal.SIGKILL
    nan_step: int = 0
    shards: int = 0
    settings: tuple[tuple[str, Any], ...] = ()

    def start(self) -> int:
        """Run to the end or to the kill; returns the exit status, negative for a signal."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [server.Process(target=main, args=(self, rank, port)) for rank in range(self.shards or 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return processes[0].exitcode

    def resumed(self, **changes: Any) -> "Run":
        return replace(self, kill_step=0, kill_save=0, kill_call=0, nan_step=0, resume=True, **changes)

    @property
    def final(self) -> bytes:
        """The stored tensors of its adapters, each in a folder of its own where there are several."""
        files = (self.folder / "final").rglob("adapter.safetensors")
        return b"".join(file.read_bytes() for file in sorted(files))


class Examples(Dataset):
    """`count` sequences of unequal length; the first token tells the class."""

    def __init__(self, count: int, kind: str):
        draw = torch.Generator().manual_seed(5)
        self.rows = []
        for index in range(count):
            length = 3 + index % 5
            ids = torch.randint(1, 30, (length,), generator=draw).tolist()
            self.rows.append({"input_ids": ids, "labels": ids[0] % 3 if kind == "bert" else ids})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (longest - len(values))

    batch = {
        "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
    }
    if isinstance(rows[0]["labels"], int):
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}
    return {**batch, "labels": torch.tensor([padded(row["labels"], -100) for row in rows])}


def model_of(kind: str, dropout: float = 0.2) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        shape["intermediate_size"] = 20
        shape |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        model = BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **shape))
        ad.attach(model, "lora", r=2, dropout=dropout, targets="attention", train=["classifier"], seed=1)
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=30, attention_dropout=dropout, **shape))
        if kind == "scheduled":  # what they do in a step depends on its number
            ad.attach(model, "dylora", r=4, update="frozen", targets=["q", "v"], seed=2)
            turns = {"coefficient_steps": 1, "location_steps": 2, "location_share": 1.0}
            ad.attach(model, "loca", "places", n=12, targets="up", seed=2, **turns)
            ad.attach(model, "pfeiffer", "behind", size=3, drop=1, seed=2)
        else:
            ad.attach(model, "lora", r=3, dropout=dropout, targets=["q", "v"], seed=2)
    return model


def arguments(run: Run) -> TrainingArguments:
    """22 examples, 2 a batch, 2 batches a step: 6 steps an epoch, the last of them shorter; 12 in all."""
    own = {
        "output_dir": str(run.folder / "run"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.02,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return TrainingArguments(**{**own, **dict(run.settings)})


class Death(TrainerCallback):
    def __init__(self, run: Run):
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.run.kill_step:
            os.kill(os.getpid(), self.run.signal)


class Doomed(AdaptomeTrainer):
    """Arms the process as the fatal checkpoint begins; gives NaN at the step it is told to."""

    run: Run

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        doomed = self.state.global_step == self.run.kill_save and self.run.kill_call
        with dying_at(self.run.kill_call, self.run.signal) if doomed else contextlib.nullcontext():
            super()._save_checkpoint(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * float("nan") if self.state.global_step + 1 == self.run.nan_step else loss


def trainer_of(run: Run, **more: Any) -> Doomed:
    data = Examples(22, run.kind)
    trainer = Doomed(
        model_of(run.kind),
        arguments(run),
        collate,
        data,
        Examples(8, run.kind),
        callbacks=[Death(run)],
        **more,
    )
    trainer.run = run
    return trainer


def main(run: Run, rank: int = 0, port: int = 0) -> None:
    """What the process does."""
    torch.set_num_threads(1)
    if run.shards:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": run.shards, "LOCAL_WORLD_SIZE": run.shards}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in {**place, **address}.items()})
    trainer = trainer_of(run)
    if run.shards:
        shard(trainer)
    trainer.train(resume_from_checkpoint=run.resume)
    trainer.save_model(str(run.folder / "final"))


def shard(trainer: Doomed) -> None:
    """Turn FSDP on; accelerate does so by itself on accelerators only."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
    )
    state = trainer.accelerator.state
    state._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = plugin
    trainer.is_fsdp_enabled = True


class HalfWriter:
    """A file whose fatal write brings half of its bytes to the disk."""

    def __init__(self, file: Any, strike: Any):
        self._file, self._strike = file, strike

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._strike(half)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "HalfWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()


@contextlib.contextmanager
def dying_at(call: int, how: int) -> Any:
    """Kill this process at its n-th call to the file system from here on."""
    left = call

    def strike(half: Any = lambda: None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            half()
            os.kill(os.getpid(), how)

    def counted(real: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            strike(
                (lambda: real(args[0], bytes(args[1])[: len(args[1]) // 2]))
                if real is writing
                else lambda: None
            )
            return real(*args, **kwargs)

        return wrapper

    def opening(real: Any) -> Any:
        def wrapper(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            opened = real(file, mode, *args, **kwargs)
            return HalfWriter(opened, strike) if set(mode) & set("wax+") else opened

        return wrapper

    def saving(real: Any) -> Any:
        def wrapper(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            def half() -> None:
                real(tensors, path, *args, **kwargs)
                os.truncate(path, os.path.getsize(path) // 2)

            strike(half)
            real(tensors, path, *args, **kwargs)

        return wrapper

    from adaptome.training import state

    writing = os.write
    names = ("open", "write", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink")
    patched = [(os, name, counted) for name in names]
    patched += [(builtins, "open", opening), (io, "open", opening), (state, "save_file", saving)]
    before = [(place, name, getattr(place, name)) for place, name, _ in patched]
    for place, name, wrap in patched:
        setattr(place, name, wrap(getattr(place, name)))
    try:
        yield
    finally:
        for place, name, real in before:
            setattr(place, name, real)
