"""What the pages of the verbs show: files to begin with, commands that are run, and the same in Python.

A verb that is not here gets a page with its help alone.
"""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """One page's example.

    Attributes:
        setup: Python that makes the files.
        commands: run in the same folder; a trailing ``# exits 1`` says with which code.
        python: the same in Python.
        one: when the verb exits with 1.
        masks: expressions for output that is another in each place; the test of the pages takes anything there.
        runs: whether the test of the pages runs it; else only whoever writes the pages does.
    """

    setup: str
    commands: tuple[str, ...]
    python: str = ""
    one: str = ""
    masks: tuple[str, ...] = ()
    runs: bool = True


NET = """\
import torch, holdfast

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""
RUN = f"""\
{NET}with holdfast.Run("runs/a", model=net, best="val_loss:min", keep="last:2 best:1") as run:
    for epoch in run.epochs(4):
        for batch in run.batches([torch.ones(4)] * 5):
            net(batch)
        run.end(epoch, val_loss=[0.9, 0.4, 0.5, 0.6][epoch])
"""
MODEL = '''\
from pathlib import Path

Path("model.py").write_text("""
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
""")
'''
_SIZE = r"[0-9.]+ [kM]B"
_NUMBER = r"\d[\d.,]*(e-\d+)?"
_AGE = r"[0-9]+ (s|min) ago"

EXAMPLES: dict[str, Example] = {
    "adopt": Example(
        f"""{NET}
import os

os.makedirs("old")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(3):
    state = {{"model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "epoch": epoch}}
    torch.save({{**state, "val_loss": 1.0 - 0.2 * epoch}}, f"old/checkpoint_epoch_{{epoch}}.pth")
""",
        ("holdfast adopt old runs/a --best val_loss:min --epoch-is done --dry-run",),
        'report = holdfast.surgery.adopt("old", "runs/a", best="val_loss:min", epoch_is="done")\n'
        "print(len(report.steps))",
    ),
    "average": Example(
        f"""{NET}holdfast.save(net, "a.pt")
net[0].bias.data.add_(2)
holdfast.save(net, "b.pt")
""",
        ("holdfast average a.pt b.pt -o mean.safetensors",),
        'holdfast.surgery.average(["a.pt", "b.pt"], "mean.safetensors")',
        one="names, shapes or dtypes of the files differ",
    ),
    "check": Example(
        f"""{NET}{MODEL}
holdfast.save({{"model": net, "epoch": 3}}, "net.pt")
""",
        ("holdfast check net.pt model.py:Net",),
        'report = holdfast.restore("net.pt", model=net, dry_run=True)\nprint(report.is_exact)',
        one="the file does not fit the model",
    ),
    "convert": Example(
        f"""{NET}holdfast.save({{"model": net, "epoch": 3}}, "net.pt")
""",
        ("holdfast convert net.pt net.safetensors", "holdfast convert net.pt net.npz --drop epoch"),
        'report = holdfast.convert("net.pt", "net.safetensors")\nprint(report.tensors)',
    ),
    "diff": Example(
        f"""{NET}holdfast.save({{"model": net, "args": {{"lr": 0.1}}}}, "a.pt")
net[2].bias.data.add_(1)
holdfast.save({{"model": torch.nn.DataParallel(net).state_dict(), "args": {{"lr": 0.2}}}}, "b.pt")
""",
        (
            "holdfast diff a.pt b.pt  # exits 1",
            "holdfast diff a.pt b.pt --keys 'model.0.*'",
            "holdfast diff a.pt b.pt --quick --json  # exits 1",
        ),
        'found = holdfast.diff("a.pt", "b.pt")\nprint([one.name for one in found.changed], found.values)',
        one="anything differs",
        masks=(r"\d\.\d\de[-+]\d\d", r"-?\d\.\d{5,}"),
    ),
    "doctor": Example(NET, ("holdfast doctor",), masks=(r"(?s)^.*$",)),
    "explain": Example(
        RUN,
        ("holdfast explain runs/a",),
        'from holdfast.runs.catalog import choose_resume, scan\n\nprint(choose_resume(scan("runs/a")).step)',
        masks=(_SIZE,),
    ),
    "export": Example(
        f"""{NET}holdfast.save(net, "net.pt")
""",
        ("holdfast export net.pt net.pt2 --input 1x4",),
        'report = holdfast.export(net, "net.pt2", example=torch.randn(1, 4))\nprint(report.worst.is_same)',
        one="the file answers otherwise than the model",
        masks=(_NUMBER, r"(?<=torch \.\.\.)\+\w+"),
    ),
    "extract": Example(
        f"""{NET}holdfast.save({{"model": net, "epoch": 3}}, "net.pt")
""",
        ("holdfast extract net.pt model.0 -o first.safetensors",),
        'holdfast.surgery.extract("net.pt", "first.safetensors", "model.0")',
    ),
    "fetch": Example(
        RUN,
        ("holdfast fetch runs/a@best cache",),
        'from holdfast.runs.fetching import fetch\n\nprint(fetch("runs/a@best", "cache"))',
    ),
    "inspect": Example(
        f"""{NET}optimizer = torch.optim.Adam(net.parameters())
net(torch.ones(4)).sum().backward()
optimizer.step()
holdfast.save({{"model": net, "optimizer": optimizer, "epoch": 3}}, "net.pt")
""",
        ("holdfast inspect net.pt", "holdfast inspect net.pt --keys 'model.*.bias'"),
        'with holdfast.open("net.pt") as file:\n    print(file.format, len(file))\nprint(holdfast.summary("net.pt"))',
    ),
    "ls": Example(
        RUN,
        ("holdfast ls runs/a",),
        "from holdfast.runs.catalog import scan\n\n"
        'print([(one.step, one.manifest.metrics) for one in scan("runs/a").checkpoints])',
        masks=(_AGE, _SIZE),
    ),
    "merge": Example(
        f"""{NET}holdfast.save(net, "net.pt")
holdfast.save({{"epoch": 3}}, "rest.pt")
""",
        ("holdfast merge model=net.pt training=rest.pt -o all.pt",),
        'holdfast.surgery.merge({"model": "net.pt", "training": "rest.pt"}, "all.pt")',
        one="two files have the same key",
    ),
    "path": Example(RUN, ("holdfast path runs/a@best",), "print(run.best.path)"),
    "pin": Example(RUN, ("holdfast pin runs/a@best paper", "holdfast path runs/a@pin:paper")),
    "prove": Example(
        '''\
from pathlib import Path

Path("train.py").write_text("""
import torch, holdfast

torch.manual_seed(0)
net = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
loader = torch.utils.data.DataLoader(torch.randn(64, 4), batch_size=4, shuffle=True)
run = holdfast.Run("runs/a", model=net, optimizer=optimizer)
for epoch in run.epochs(2):
    for batch in run.batches(loader):
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
""")
''',
        ("holdfast prove --kills 2 --seed 1 train.py",),
        one="a bit differs",
        runs=False,
    ),
    "prune": Example(RUN, ("holdfast prune runs/a --keep last:1 --dry-run",), masks=(_SIZE,)),
    "quantize": Example(
        f"""{NET}holdfast.save(net, "net.pt")
""",
        ("holdfast quantize net.pt small.pt --recipe dynamic-int8 --input 1x4",),
        'small = holdfast.quantize(net, "dynamic-int8")\nsaved = holdfast.save(small, "small.pt")',
        masks=(_NUMBER, r"\b(onednn|qnnpack|fbgemm|x86)\b"),
    ),
    "rename": Example(
        f"""{NET}torch.save(torch.nn.DataParallel(net).state_dict(), "parallel.pt")
""",
        ("holdfast rename parallel.pt net.pt --strip-prefix module",),
        'holdfast.surgery.rename("parallel.pt", "net.pt", strip_prefix="module")',
        one="no name changes, or two become one",
    ),
    "rescue": Example(
        f"""{NET}torch.save(net, "whole.pth")
""",
        ("holdfast rescue whole.pth -o weights.safetensors", "holdfast rescue whole.pth --skeleton"),
        'print(list(holdfast.rescue("whole.pth")))',
    ),
    "lint": Example(
        """\
with open("train.py", "w") as file:
    print("import torch", file=file)
    print("best = model.state_dict().copy()", file=file)
    print("for epoch in range(10):", file=file)
    print("    torch.save(model.state_dict(), 'last.pth')", file=file)
""",
        ("holdfast lint train.py  # exits 1", "holdfast lint train.py --fix --select HF001  # exits 1"),
        one="anything is found",
    ),
    "scan": Example(
        f"""{NET}torch.save(net, "whole.pth")
holdfast.save(net, "net.safetensors")
""",
        ("holdfast scan whole.pth", "holdfast scan net.safetensors"),
        'print(holdfast.scan("whole.pth").verdict)',
    ),
    "show": Example(
        RUN,
        ("holdfast show runs/a@best",),
        "print(run.best.step, run.best.metrics)",
        masks=(
            _SIZE,
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
            r"xxh3-128:\w+",
            r"(?<=run )\w{6,}",
            r"'[0-9a-f]{40,}.*",
            r"(?s)(?<=\nenvironment).*$",
        ),
    ),
    "stats": Example(
        setup=f"""{NET}net[2].weight.data.zero_()
holdfast.save(net, "net.pt")
""",
        commands=("holdfast stats net.pt --fail-on dead  # exits 1",),
        one="a tensor has what `--fail-on` names",
        masks=(_NUMBER,),
    ),
    "strip": Example(
        f"""{NET}holdfast.save({{"model": net, "optimizer": torch.optim.Adam(net.parameters()), "epoch": 3}}, "ckpt.pt")
""",
        ("holdfast strip ckpt.pt net.safetensors",),
        'holdfast.surgery.strip("ckpt.pt", "net.safetensors")',
    ),
    "unpin": Example(RUN, ("holdfast pin runs/a@best paper", "holdfast unpin runs/a paper")),
    "verify": Example(
        f"""{RUN}holdfast.save(net, "net.pt")
""",
        ("holdfast verify runs/a", "holdfast verify net.pt"),
        'print(holdfast.verify("runs/a").status)',
        one="with --strict, something is NOT VERIFIABLE",
        masks=(_SIZE,),
    ),
    "view": Example(
        setup=RUN,
        commands=("holdfast view runs/a", "holdfast view runs/a@best --diff runs/a@last -o changed.html"),
        masks=(_SIZE,),
    ),
}
