"""Run by torchrun: what a run of several processes does in a store. ``stored_together.py SCENE URL``.

Each scene is a function; a rank that finds something wrong raises, and torchrun ends with an error.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import holdfast
from holdfast.errors import StorageError
from holdfast.runs.catalog import scan
from holdfast.storage.places import names_in
from holdfast.storage.remote.place import StorePlace
from holdfast.storage.remote.store import Store
from tests.distributed.run_together import Training
from tests.distributed.wrapped import differences, full


def resume(url: str) -> None:
    """A training that was left amid an epoch and goes on is the one that was not, to the bit, on every rank."""
    for background in (False, True):
        at = f"{url}/{background}"
        whole = Training(f"{at}/whole", "fsdp", save="1ep", background=background)
        whole.train()
        wanted = whole.state()
        whole.run.close()
        first = Training(f"{at}/stopped", "fsdp", save="1ep", background=background, keep="last:1")
        first.train(stop_at=9)
        first.run.close()
        dist.barrier()
        second = Training(f"{at}/stopped", "fsdp", save="1ep", background=background, keep="last:1")
        second.train()
        found = differences(wanted, second.state())
        assert not found, found
        second.run.close()
        dist.barrier()
        assert holdfast.verify(f"{at}/stopped").status == "OK"
        one = scan(f"{at}/stopped").readable[-1]
        assert one.manifest is not None
        assert one.manifest.environment["world_size"] == dist.get_world_size()
        names = names_in(f"{at}/stopped/{one.manifest.data}")
        ranks = [f"rank-{rank:05d}.safetensors" for rank in range(dist.get_world_size())]
        assert names == ["entries.json", *ranks, "state.json"]


def failing(url: str) -> None:
    """What one rank raises amid an upload, all do; the newest checkpoint stays, and the next save works."""
    training = Training(f"{url}/run", "fsdp", save="1ep", read_back=True)
    training.run.save(step=1)
    real = Store.upload
    for guilty in range(dist.get_world_size()):
        if dist.get_rank() == guilty:
            Store.upload = _broken  # type: ignore[method-assign]
        try:
            training.run.save(step=2)
            raise SystemExit("the save did not fail")
        except StorageError as reason:
            text = str(reason)
        Store.upload = real  # type: ignore[method-assign]
        assert "cable pulled" in text, text
        assert dist.get_rank() == guilty or f"rank {guilty}: " in text, text
        dist.barrier()  # rank 0 has cleared up by then
        assert [name for name in names_in(f"{url}/run") if "step" in name] == ["step-00000001"]
        dist.barrier()
    training.run.save(step=2)
    training.run.close()
    dist.barrier()
    assert holdfast.verify(f"{url}/run").status == "OK"


def _broken(self: Store, key: str, size: int, blocks: Any) -> None:
    raise StorageError(f"`{self.url(key)}`: cable pulled")


def damaged(url: str) -> None:
    """Damage in one rank's object: all of them fall back to the checkpoint before."""
    training = Training(f"{url}/run", "fsdp", save="1ep")
    training.run.save(step=1)
    training.run.save(step=2)
    training.run.close()
    dist.barrier()
    if dist.get_rank() == 0:
        manifest = scan(f"{url}/run").readable[-1].manifest
        assert manifest is not None
        place = StorePlace(Store(url.rpartition("/")[0], holdfast.storage.remote.store.LIMITS))
        path = f"{url}/run/{manifest.data}/rank-00001.safetensors"
        data = bytearray(place.source(path).read(0, manifest.files["rank-00001.safetensors"].size))
        data[-1] ^= 1
        place.write(path, bytes(data))
    dist.barrier()
    again = Training(f"{url}/run", "fsdp", save="1ep")
    at = again.run.resume()
    assert at is not None
    assert at.step == 1, at
    again.run.close()
    dist.barrier()
    assert [one.step for one in scan(f"{url}/run").readable] == [1]


def leave(url: str) -> None:
    """Leaves a run amid its first epoch, for another number of processes."""
    training = Training(f"{url}/run", "fsdp", save="1ep")
    training.train(stop_at=6)
    training.run.close()


def go_on(url: str) -> None:
    """Goes on with it, sharded otherwise; what was left is what one process reads."""
    tree = holdfast.load(f"{url}/run")
    training = Training(f"{url}/run", "fsdp", save="1ep")
    at = training.run.resume()
    assert at is not None
    assert at.step == 6
    assert not differences(tree["model"], full(training.net.state_dict()))
    training.train()
    training.run.close()
    dist.barrier()
    assert holdfast.verify(f"{url}/run").status == "OK"


def killed(url: str) -> None:
    """Saves step 1, and is killed on one rank at one call of a save of step 2: ``RANK:CALL``, by the environment."""
    guilty, call = os.environ["KILLED"].split(":")
    training = Training(f"{url}/run", "fsdp", save="1ep")
    training.run.save(step=1)
    real = getattr(Store, call.removeprefix("after-"))

    def dying(self: Store, key: str, *given: Any) -> Any:
        if "step-00000002" in key:
            if call.startswith("after-"):
                real(self, key, *given)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, key, *given)

    if dist.get_rank() == int(guilty):
        setattr(Store, call.removeprefix("after-"), dying)
    training.run.save(step=2)


SCENES: dict[str, Callable[[str], None]] = {
    one.__name__: one for one in (resume, failing, damaged, leave, go_on, killed)
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=40))
    try:
        for scene in sys.argv[1].split(","):
            SCENES[scene](f"{sys.argv[2]}/{'world' if scene in ('leave', 'go_on') else scene}")
            print(f"rank {dist.get_rank()}: {scene} done", flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # taking gloo's threads down at exit aborts now and then; all that is tested is in the store
