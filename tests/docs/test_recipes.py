"""Each recipe shows what it promises in a block that runs, in both languages."""

from __future__ import annotations

import pytest

from tests.docs.pages import recipes

SHOWN = {
    "R1": ["holdfast.summary(net)", 'holdfast.summary({"model": net', "holdfast inspect"],
    "R2": ["holdfast.save(net,", "holdfast.restore(", "model=net"],
    "R3": ["config=", "holdfast.build(", "factory=Net", "compat.load("],
    "R4": ["holdfast.rescue(", "holdfast rescue", "--skeleton", "holdfast.restore(", "model=NewNet()"],
    "R5": ["holdfast.save(checkpoint", "optimizer=optimizer, scheduler=scheduler", "report.values["],
    "R6": ["holdfast.Run(", "start_from=", 'mode="train"', 'mode="eval"', "holdfast.build("],
    "R7": ["G=G, D=D, opt_G=opt_G, opt_D=opt_D", "report.unused", "holdfast merge"],
    "R8": ["match=holdfast.Warm()", "print(report)"],
    "R9": ["report.mismatched", "report.missing", "dry_run=True"],
    "R10": ["holdfast.Warm(", "rename=", "holdfast rename", "holdfast extract"],
    "R11": ["_load_from_state_dict", "nn.DataParallel(Migrating())", "report.renamed"],
    "R12": ["map_location=device", 'map_location="auto"', "holdfast.restore("],
    "R13": ["nn.DataParallel(net)", "torch.compile(net)", "holdfast.restore("],
    "R14": ["io.BytesIO()", "pathlib.Path(", 'open("net.pt", "rb")', "encoding="],
    "R15": ["_use_new_zipfile_serialization=False", 'format="torch-legacy"', "holdfast.restore("],
    "R16": ['format="torchscript"', "holdfast.export(", "holdfast.build("],
    "R17": ['"net.onnx"', "input_names=", "output_names=", "dynamic=", "onnxruntime.InferenceSession("],
    "R18": ['"net.pt2"', "holdfast.export(", "holdfast.build("],
    "R19": ['holdfast.quantize(net, "dynamic-int8")', "holdfast.build("],
    "R20": ['holdfast.quantize(net, "static-int8", calibration=loader)', "holdfast.build("],
    "R21": ['best="val_acc:max"', "holdfast ls"],
    "R22": ["holdfast.snapshot(net)", 'holdfast.convert("runs/best@best"', "torch.load("],
    "R23": ["save=", "keep="],
    "R24": ["config=", "args=", "factory=create_model_from_config"],
    "R25": ["holdfast.save(net", "holdfast ls"],
    "R26": ["report.missing", "report.unexpected", "report.suggestions"],
    "R27": ["report.mismatched", "resize="],
    "R28": ["optimizer=None, scheduler=None", "holdfast.save(", "holdfast.restore(", "report.unused"],
    "R29": ["holdfast.build(", 'mode="eval"', "torch.no_grad()", "argmax("],
    "R30": ["persistent=False", "get_extra_state", "holdfast.save(counting", "holdfast.restore("],
    "R31": ["AveragedModel(", "OneCycleLR(", "GradScaler(", "holdfast.restore("],
    "R32": ["holdfast.Run(", "fully_shard(", "HoldfastReader(", "HoldfastWriter(", "holdfast.restore("],
    "R33": ["holdfast.convert(", "numpy.load(", "holdfast convert"],
}
"""What stands in the blocks of each recipe."""


@pytest.mark.parametrize("page", ["docs/recipes.md", "docs/recipes.zh-CN.md"])
def test_each_recipe_shows_what_it_promises(page: str) -> None:
    found = {name: "\n".join(block.text for block in inside if block.runs) for name, inside in recipes(page) if name}
    assert list(found) == list(SHOWN) == [f"R{number}" for number in range(1, 34)]
    missing = {name: [one for one in wanted if one not in found[name]] for name, wanted in SHOWN.items()}
    assert not any(missing.values()), missing
