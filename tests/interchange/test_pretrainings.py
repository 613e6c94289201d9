"""Whole checkpoints of MoCo v2 and DenseCL: pre-training goes on from heads, key encoder and queues, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.interchange.foreign_files import under
from torch import Tensor

from selfdet import import_weights, pretrain
from selfdet.errors import UserError
from selfdet.interchange.pretrainings import whole_of
from selfdet.interchange.starts import resolve_start
from selfdet.methods.densecl import DenseCL
from selfdet.methods.moco import MoCo
from selfdet.models.backbones import build_backbone

DIM, LENGTH = 8, 16


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """A MoCo and a DenseCL whose two encoders differ."""
    made: dict[str, Any] = {}
    for name, method in (("moco", MoCo), ("densecl", DenseCL)):
        made[name] = method(build_backbone("resnet18"), dim=DIM, queue_length=LENGTH)
        with torch.no_grad():
            for parameter in made[name].key_encoder.parameters():
                parameter.mul_(1.01).add_(0.001)
            made[name].key_encoder.backbone.net.bn1.running_mean += 0.5
    return made


def parts(encoder: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An encoder's backbone, and its heads as OpenSelfSup calls them."""
    heads = {}
    for ours, theirs in (("global_head", "mlp"), ("dense_head", "mlp2")):
        for layer, number in (("first", 0), ("last", 2)):
            if hasattr(encoder, ours):
                own = getattr(getattr(encoder, ours), layer)
                heads |= {
                    f"{theirs}.{number}.weight": own.weight.detach(),
                    f"{theirs}.{number}.bias": own.bias.detach(),
                }
    return encoder.backbone.net.state_dict(), heads


def queues(method: Any) -> dict[str, Tensor]:
    made = {"queue": method.queue.t().contiguous(), "queue_ptr": torch.tensor([3])}
    if hasattr(method, "dense_queue"):
        made |= {"queue2": method.dense_queue.t().contiguous(), "queue2_ptr": torch.tensor([5])}
    return made


def moco_file(method: Any) -> dict[str, Any]:
    state = under("module.", queues(method))
    for side, encoder in (("q", method.encoder), ("k", method.key_encoder)):
        body, heads = parts(encoder)
        own = {**body, **{name.replace("mlp.", "fc."): value for name, value in heads.items()}}
        state |= under(f"module.encoder_{side}.", own)
    return {"arch": "resnet18", "epoch": 800, "state_dict": state, "optimizer": {}}


def openselfsup_file(method: Any) -> dict[str, Any]:
    state = queues(method)
    for side, encoder in (("q", method.encoder), ("k", method.key_encoder)):
        body, heads = parts(encoder)
        state |= under(f"encoder_{side}.0.", body) | under(f"encoder_{side}.1.", heads)
    return {"meta": {}, "state_dict": state | under("backbone.", parts(method.encoder)[0])}


def mmselfsup_file(method: Any) -> dict[str, Any]:
    body, heads = parts(method.encoder)
    key_body, key_heads = parts(method.key_encoder)
    state = under("backbone.", body) | under("neck.", heads) | under("encoder_k.module.0.", key_body)
    return {"state_dict": state | under("encoder_k.module.1.", key_heads) | queues(method)}


FILES: dict[str, Any] = {
    "moco": (moco_file, "moco"),
    "openselfsup": (openselfsup_file, "moco"),
    "densecl": (openselfsup_file, "densecl"),
    "mmselfsup": (mmselfsup_file, "densecl"),
}


def saved(folder: Path, content: Any) -> str:
    torch.save(content, folder / "given.pth")
    return str(folder / "given.pth")


@pytest.mark.parametrize("key", FILES)
def test_every_tensor_of_a_whole_checkpoint_is_where_the_method_has_it(
    tmp_path: Path, trained: dict[str, Any], key: str
) -> None:
    make, name = FILES[key]
    file = saved(tmp_path, make(trained[name]))
    answer = import_weights(file=file, out=str(tmp_path / "w.safetensors"), part="pretraining")
    assert (answer["format"], answer["kind"], answer["method"]) == (key, "pretraining", name)
    assert answer["left_out"] == []
    # Whatever else starts from it takes its backbone.
    start = resolve_start(str(tmp_path / "w.safetensors"))
    assert start.kind == "backbone"
    assert start.state.keys() == trained[name].encoder.backbone.net.state_dict().keys()
    fresh = type(trained[name])(build_backbone("resnet18"), dim=DIM, queue_length=LENGTH, seed=1)
    whole = whole_of(str(tmp_path / "w.safetensors"))
    assert whole is not None
    assert "queues" in whole.fill(fresh)
    own, expected = fresh.state_dict(), trained[name].state_dict()
    for each, value in expected.items():
        if "extra_state" not in each and not each.endswith("_entered"):
            assert torch.equal(own[each], value), each
    # The next keys are written where the other program would have written them.
    assert int(fresh.queue_entered) % LENGTH == 3
    assert name == "moco" or int(fresh.dense_queue_entered) % LENGTH == 5
    longer = type(trained[name])(build_backbone("resnet18"), dim=DIM, queue_length=2 * LENGTH)
    before = longer.queue.clone()
    assert "its queue of 16 keys, not 32, begins afresh" in whole.fill(longer)
    assert torch.equal(longer.queue, before)
    assert torch.equal(longer.key_encoder.backbone.net.conv1.weight, expected["key_encoder.backbone.net.conv1.weight"])


def test_pretraining_goes_on_from_the_queue_and_says_so(tmp_path: Path, trained: dict[str, Any]) -> None:
    weights = str(tmp_path / "w.safetensors")
    import_weights(file=saved(tmp_path, openselfsup_file(trained["densecl"])), out=weights, part="pretraining")
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 90, 30)).save(tmp_path / "images" / f"{number}.png")
    told = {}
    for name, more in {"same": {}, "moco": {"method": "moco"}}.items():
        out = tmp_path / name
        pretrain(
            **{
                **{"images": str(tmp_path / "images"), "out": str(out), "backbone": "resnet18", "stages": ["backbone"]},
                **{"backbone_weights": weights, "method": "densecl", "image_size": 64, "batch_size": 4, "steps": 1},
                **{"workers": 0, **more},  # type: ignore[dict-item]
            }
        )
        told[name] = (out / "log.txt").read_text()
    assert "goes on from the heads, the key encoder and the queues of this densecl" in told["same"]
    assert "queue length: 16" in told["same"]
    assert "heads and queues of moco begin afresh: the weights are of densecl" in told["moco"]


def broken(content: dict[str, Any], how: str) -> dict[str, Any]:
    state = dict(content["state_dict"])
    if how == "one wrong prefix":
        state["encoder_k.O.conv1.weight"] = state.pop("encoder_k.0.conv1.weight")
    elif how == "half the keys":
        state = {name: value for name, value in state.items() if not name.startswith("encoder_k.0.layer3")}
    elif how == "not finite":
        state["queue"] = state["queue"].clone().fill_(float("nan"))
    elif how == "another width":
        state["queue2"] = torch.ones(DIM + 1, LENGTH)
    elif how == "transposed":
        state["encoder_k.1.mlp.2.weight"] = state["encoder_k.1.mlp.2.weight"].t().contiguous()
    elif how == "another head":
        state["encoder_q.1.mlp.4.weight"] = torch.ones(2, 2)
    elif how == "one layer":
        state = {name: value for name, value in state.items() if ".mlp" not in name}
        state |= {f"encoder_{side}.1.mlp.weight": torch.ones(2, 2) for side in "qk"}
    elif how == "pointer":
        state["queue_ptr"] = torch.tensor([LENGTH])
    elif how == "no queue":
        state.pop("queue")
    return {**content, "state_dict": state}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one wrong prefix", "not whole: key_encoder.backbone.net.conv1.weight is missing"),
        ("half the keys", "is missing, and [0-9]+ more"),
        ("not finite", "queue is not finite"),
        ("another width", "dense_queue 16×9 for 16×8"),
        ("transposed", "last.weight 512×8 for 8×512"),
        ("another head", "another head than two layers"),
        ("one layer", "MoCo v1"),
        ("pointer", "queue_ptr is 16"),
        ("no queue", "no whole MoCo or DenseCL"),
    ],
)
def test_what_is_not_whole_is_refused_and_nothing_is_written(
    tmp_path: Path, trained: dict[str, Any], how: str, message: str
) -> None:
    file = saved(tmp_path, broken(openselfsup_file(trained["densecl"]), how))
    with pytest.raises(UserError, match=message) as caught:
        import_weights(file=file, out=str(tmp_path / "w.safetensors"), part="pretraining")
    print(how, caught.value.message, "|", caught.value.hint)
    assert not (tmp_path / "w.safetensors").exists()
