"""Running a function in several processes that form a gloo group."""

import datetime
import pickle
import socket
import tempfile
from pathlib import Path

import torch


def _start(rank, world, port, folder, function, args):
    import mmkd_tas  # noqa: F401  (the mends)

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(minutes=1),
    )
    Path(folder, str(rank)).write_bytes(pickle.dumps(function(rank, *args)))
    torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def run_processes(function, *args, world=2):
    """Return what ``function(rank, *args)`` returns in each of the processes."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _start, (world, port, folder, function, args), nprocs=world, start_method='fork'
        )
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world)]
