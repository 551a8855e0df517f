"""Writes are whole or absent, whatever kills the process; real SIGKILLs in forked children."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adaptome.core import files
from adaptome.core.errors import CheckpointError
from adaptome.core.files import atomic_folder, sha256, sweep_staging, write_atomic

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "close")
OLD = {"a": b"old a", "sub/b": b"old b"}
NEW = {"a": b"new a" * 1000, "sub/c": b"new c"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


def contents(folder: Path) -> dict[str, bytes] | None:
    if not folder.is_dir():
        return None
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill(folder: Path, entries: dict[str, bytes]) -> None:
    for name, data in entries.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(data)


def killed_at(n: int, work) -> bool:
    """Run `work` in a child that is killed as it makes its n-th call to the file system."""
    child = os.fork()
    if child == 0:
        left = n

        def counted(call):
            def wrapper(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    if call is real["write"]:  # half of the bytes arrive
                        call(args[0], bytes(args[1])[: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapper

        real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, counted(real[name]))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed of itself"
    return False


def every_kill(work, check) -> int:
    n = 1
    while killed_at(n, work):
        check(n)
        n += 1
    return n - 1


def test_a_file_killed_at_any_call_is_old_or_new(tmp_path):
    path = tmp_path / "state.json"
    seen = set()

    def check(n):
        seen.add(path.read_bytes())
        path.write_bytes(b"old")

    path.write_bytes(b"old")
    assert every_kill(lambda: write_atomic(path, b"new" * 5000), check) >= 5
    assert seen == {b"old", b"new" * 5000}
    sweep_staging(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("swap", [True, False], ids=["swapped", "moved-aside"])
def test_a_folder_killed_at_any_call_is_old_or_new_after_a_sweep(tmp_path, monkeypatch, swap):
    if not swap:
        monkeypatch.setattr(files, "_swap", lambda a, b: False)
    path, seen = tmp_path / "adapter", []

    def work():
        with atomic_folder(path) as staging:
            fill(staging, NEW)

    def check(n):
        sweep_staging(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["adapter"], n
        seen.append(contents(path))
        assert seen[-1] in (OLD, NEW), n
        with atomic_folder(path) as staging:
            fill(staging, OLD)

    fill(path, OLD)
    assert every_kill(work, check) >= 10
    assert OLD in seen and NEW in seen


def test_a_swapped_folder_is_never_missing_even_before_a_sweep(tmp_path):
    path = tmp_path / "adapter"
    fill(path, OLD)
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    if not files._swap(tmp_path / "x", tmp_path / "y"):
        pytest.skip("this file system cannot swap two names")

    def work():
        with atomic_folder(path) as staging:
            fill(staging, NEW)

    def check(n):
        assert contents(path) in (OLD, NEW), n

    assert every_kill(work, check) >= 10


def test_a_new_folder_killed_at_any_call_is_absent_or_whole(tmp_path):
    path = tmp_path / "deep" / "adapter"

    def work():
        with atomic_folder(path) as staging:
            fill(staging, NEW)

    def check(n):
        assert contents(path) in (None, NEW), n

    assert every_kill(work, check) >= 8


def test_a_removed_folder_is_whole_or_gone_after_a_kill(tmp_path):
    path, seen = tmp_path / "adapter", []

    def check(n):
        seen.append(contents(path))
        assert seen[-1] in (None, OLD), n
        sweep_staging(tmp_path)
        assert not list(tmp_path.glob(".*"))
        with atomic_folder(path) as staging:
            fill(staging, OLD)

    fill(path, OLD)
    assert every_kill(lambda: files.remove_folder(path), check) >= 4
    assert None in seen and OLD in seen


def test_every_file_is_synced_before_its_folder_takes_the_name(tmp_path, monkeypatch):
    events, names = [], {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def opened(path, *args, **kwargs):
        file = real_open(path, *args, **kwargs)
        names[file] = os.path.basename(path)
        return file

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda file: (events.append(names[file]), real_fsync(file)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), real_rename(a, b)))
    with atomic_folder(tmp_path / "adapter") as staging:
        fill(staging, NEW)
    at = events.index("rename")
    assert {"a", "c", "sub", staging.name} <= set(events[:at])
    assert events[at + 1 :] == [tmp_path.name]


def test_an_exception_leaves_the_old_folder_and_no_staging(tmp_path):
    path = tmp_path / "adapter"
    fill(path, OLD)
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as staging:
        fill(staging, NEW)
        raise ZeroDivisionError
    assert contents(path) == OLD and len(list(tmp_path.iterdir())) == 1


def test_ctrl_c_leaves_the_old_folder_and_no_staging(tmp_path):
    path = tmp_path / "adapter"
    fill(path, OLD)
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as staging:
        fill(staging, NEW)
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    assert contents(path) == OLD and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named_and_the_old_folder_stays(tmp_path):
    path = tmp_path / "adapter"
    fill(path, OLD)
    with pytest.raises(CheckpointError, match="disk is full") as caught, atomic_folder(path) as staging:
        fill(staging, NEW)
        Path("/dev/full").write_bytes(b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert contents(path) == OLD and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_while_writing_a_file_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        write_atomic(path, "new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "a"):
        raise ValueError("mine")


def test_a_folder_with_foreign_entries_is_refused(tmp_path):
    fill(tmp_path / "out", {"adapter.safetensors": b"", "thesis.tex": b"x"})
    with (
        pytest.raises(CheckpointError, match=r"thesis\.tex"),
        atomic_folder(tmp_path / "out", only=["adapter.*", "adaptome.json"]),
    ):
        pass
    assert (tmp_path / "out" / "thesis.tex").read_bytes() == b"x"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"), atomic_folder(tmp_path / "out"):
        pass


def test_a_link_stays_a_link(tmp_path):
    fill(tmp_path / "real", OLD)
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as staging:
        fill(staging, NEW)
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "real") == NEW


def test_the_same_folder_is_not_written_twice_at_once(tmp_path):
    with atomic_folder(tmp_path / "a") as staging:
        with pytest.raises(CheckpointError, match="already"), atomic_folder(tmp_path / "a"):
            pass
        fill(staging, NEW)
    assert contents(tmp_path / "a") == NEW


def test_sweeping_spares_the_living_and_the_unknown(tmp_path):
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    spared = [f".a.staging-{alive.pid}", ".a.staging", "a.staging-1", ".hidden", "b"]
    for name in [*spared, f".a.staging-{dead.pid}", f".c.writing-{dead.pid}", f".b.old-{dead.pid}"]:
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "mine") as staging:
        swept = sweep_staging(tmp_path)
        assert staging.is_dir()
    alive.communicate(b"\n")
    assert sorted(p.name for p in swept) == sorted(
        [f".a.staging-{dead.pid}", f".c.writing-{dead.pid}", f".b.old-{dead.pid}"]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*spared, "mine"])


def test_a_folder_moved_aside_comes_back(tmp_path):
    fill(tmp_path / f".adapter.old-{os.getpid()}", OLD)
    sweep_staging(tmp_path)
    assert contents(tmp_path / "adapter") == OLD


def test_sweeping_a_missing_folder_does_nothing(tmp_path):
    assert sweep_staging(tmp_path / "none") == []


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = os.urandom(3_000_001)
    write_atomic(tmp_path / "x", data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_text_is_written_as_utf8_with_the_usual_permissions(tmp_path):
    write_atomic(tmp_path / "x", "naïve")
    (tmp_path / "y").write_text("")
    assert (tmp_path / "x").read_bytes() == "naïve".encode()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode
