"""Running a function in several processes that form a gloo group."""

import contextlib
import datetime
import os
import pickle
import random
import socket
import tempfile
from pathlib import Path

import torch

# The first backward pass starts a thread for each kind of device, and FakeTensorMode (which finds
# the stages) adds one that is not there: no forked process could train after that.
torch.ones((), requires_grad=True).backward()


def _start(rank, world, folder, function, args):
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    import mmkd_tas  # noqa: F401  (the patches)

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/store',
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(minutes=1),
    )
    Path(folder, str(rank)).write_bytes(pickle.dumps(function(rank, *args)))
    torch.distributed.destroy_process_group()


def free_port():
    """A port below those that the kernel hands out: no connection of another test takes it."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.SystemRandom().randrange(20000, 32000)
            probe.bind(('127.0.0.1', port))
            return port


def run_processes(function, *args, world=2):
    """Return what ``function(rank, *args)`` returns in each of the processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _start, (world, folder, function, args), nprocs=world, start_method='fork'
        )
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world)]


def run_together(function, *args, processes=2):
    """Run ``function(rank, barrier, *args)`` in processes that form no group."""
    fork = torch.multiprocessing.get_context('fork')
    barrier = fork.Barrier(processes)
    started = [fork.Process(target=function, args=(i, barrier, *args)) for i in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * processes
