"""The compiled renderer among processes and threads: data loader workers, forks, DDP. Each case runs on its own, under a hard time limit.

The limit allows for a first compilation of the kernels; a case that hangs is killed with all its children.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 240  # seconds

START = """
import hashlib, os, sys
sys.path.insert(0, {tests!r})
import torch
from dataclasses import replace
from render_scenes import random_scene
from mggtalk.rendering.cpu import CpuRenderer

SIZE = (100, 90)

def digest(seed=1, points=20000):
    # of an image and its gradients; 60,000 numbers: enough for PyTorch's own operations to use several threads
    gaussians, camera, background = (part.to(torch.float32) for part in random_scene(seed, points, SIZE))
    means = gaussians.means.clone().requires_grad_()
    rendering = CpuRenderer()(replace(gaussians, means=means), camera, SIZE, background)
    rendering.image.square().sum().backward()
    return hashlib.sha256(rendering.image.detach().numpy().tobytes() + means.grad.numpy().tobytes()).hexdigest()
"""


def run(code: str, folder: Path, *, threads: int = 2) -> list[str]:
    """The words that a script prints; it gets ``threads`` threads, and its process group is killed when time is up."""
    here = Path(__file__).parent
    script = folder / "script.py"
    script.write_text(START.format(tests=str(here)) + code, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**kept, "NUMBA_NUM_THREADS": str(max(threads, 2)), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(here.parent)}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, error = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            pytest.fail(f"locked up: not done after {LIMIT} s")
    assert process.returncode == 0, error[-3000:]
    return out.split()


LOADERS = """
from torch.utils.data import DataLoader, Dataset

class Digests(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return digest(index), torch.get_num_threads()

if __name__ == "__main__":
    alone = [digest(index) for index in range(4)]
    for way, workers in (("spawn", 1), ("fork", 2)):
        loader = DataLoader(Digests(), num_workers=workers, multiprocessing_context=way, timeout=200, batch_size=None)
        found = list(loader)
        print(way, [one for one, _ in found] == alone, *{threads for _, threads in found})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_data_loader_workers_render_what_their_parent_renders(tmp_path: Path) -> None:
    """Spawned, and forked from a parent whose threads have started. A worker has one thread."""
    assert run(LOADERS, tmp_path) == ["spawn", "True", "1", "fork", "True", "1"]


FORKS = """
def child():
    pid = os.fork()
    if pid == 0:
        good = digest() == wanted and torch.get_num_threads() == 1
        os._exit(0 if good else 1)
    return pid

wanted = digest()
assert torch.get_num_threads() == 2
(torch.randn(2000, 2000) @ torch.randn(2000, 2000)).sum()
pids = [child(), child()]
again = digest()
pids.append(child())
print(again == wanted, torch.get_num_threads(), *(os.waitpid(pid, 0)[1] for pid in pids))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_children_forked_after_threads_have_started_render_on_one(tmp_path: Path) -> None:
    """Two at a time beside a parent that goes on rendering; they need not be told to leave PyTorch's threads alone."""
    assert run(FORKS, tmp_path) == ["True", "2", "0", "0", "0"]


DDP = """
import datetime
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

class Painting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gaussians, self.camera, _ = (part.to(torch.float32) for part in random_scene(1, 3000, SIZE))
        self.features = torch.nn.Parameter(self.gaussians.features.clone())
        self.means = torch.nn.Parameter(self.gaussians.means.clone())

    def forward(self):
        return CpuRenderer()(replace(self.gaussians, features=self.features, means=self.means), self.camera, SIZE).image

def work(rank, meeting):
    torch.set_num_threads(2)
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=200))
    model = DistributedDataParallel(Painting())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model() - 0.2 - 0.6 * rank).square().sum() / 1000  # each rank has a target of its own
        loss.backward()
        optimizer.step()
        total = loss.detach()
        dist.all_reduce(total)
        losses.append(total.item())
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    gathered = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(gathered, weights)
    first = torch.cat([parameter.detach().flatten() for parameter in Painting().parameters()])
    dist.destroy_process_group()
    return torch.equal(*gathered), losses[-1] < losses[0], bool((weights != first).double().mean() > 0.1)

if __name__ == "__main__":
    meeting = os.path.join(os.path.dirname(os.path.abspath(__file__)), "meeting")
    digest()  # one of the two has used its threads before
    other = mp.get_context("spawn").Process(target=work, args=(1, meeting))
    other.start()
    print(*work(0, meeting))
    other.join()
    print(other.exitcode)
"""


def test_two_ddp_processes_train_the_same_weights(tmp_path: Path) -> None:
    assert run(DDP, tmp_path) == ["True", "True", "True", "0"]


THREADS = """
import scipy.linalg  # what Numba loads at its first call; it brings a thread of its own
from mggtalk.rendering import cpu_threads

def tasks():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0

torch.set_num_threads(1)
before, wanted = tasks(), digest(points=3000)
digest()
print(cpu_threads._process.started, tasks() - before)
for count in (3, 2, 1, 4, 7):
    torch.set_num_threads(count)
    with cpu_threads.threads() as parts:
        print(parts)
    same = digest(points=3000) == wanted
    print(same, torch.get_num_threads() == count)
"""


def test_threads_are_as_many_as_torch_says(tmp_path: Path) -> None:
    """With one thread no other is started; more are never more than Numba has (4 here), and torch's own number stays as it was."""
    first, *rest = run(THREADS, tmp_path, threads=4)
    assert first == "False" and rest[0] == "0"
    assert [rest[place : place + 3] for place in range(1, 16, 3)] == [[str(parts), "True", "True"] for parts in (3, 2, 1, 4, 4)]
