"""Which backbones can be pruned? Each of many timm architectures is cut, counted, exported and timed.

    python -m benchmarks.families [NAME…]       all of `ARCHITECTURES`, or these; rows that are there stay

Each network has drawn weights and statistics, which no question here depends on. A row says either the sentence of
refusal, or: whether the masked and the cut network compute the same, whether three ways of counting agree, whether
both runtimes compute what PyTorch computes, and how much faster the network with half of the multiply-adds is than
the whole one in ONNX Runtime on one thread, both timed in turn. Beside it: what Torch-Pruning makes of the same
network, asked for half of the multiply-adds as its README says. Rows go to results/families.jsonl.
"""

import argparse
import copy
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.study.rows import RESULTS
from mvp_edge.families import unit_groups
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.budget import Sizer
from mvp_edge.subnetwork.cost import cross_check, forward_macs
from mvp_edge.subnetwork.subnet import extract, mask, resize
from mvp_edge_export.errors import BadInput, BudgetMissed, GateFailed
from mvp_edge_export.profile import load_profile
from mvp_edge_export.profile_sections import Budgets
from mvp_edge_export.running.sessions import Session
from mvp_edge_export.server.candidates import loaded
from mvp_edge_export.server.convert import frozen, onnx_graph, save_openvino
from mvp_edge_export.server.parity import check_parity

ROWS = RESULTS / "families.jsonl"
ARCHITECTURES = {
    "MobileNetV2": "mobilenetv2_050 mobilenetv2_100 mobilenetv2_110d mobilenetv2_120d mobilenetv2_140",
    "MobileNetV3": "mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_small_100 mobilenetv3_large_075 "
    "mobilenetv3_large_100 tf_mobilenetv3_small_minimal_100 tf_mobilenetv3_large_100",
    "MobileNetV4": "mobilenetv4_conv_small mobilenetv4_conv_medium mobilenetv4_conv_large",
    "EfficientNet-Lite": "efficientnet_lite0 tf_efficientnet_lite0 tf_efficientnet_lite1 tf_efficientnet_lite2 "
    "tf_efficientnet_lite3 tf_efficientnet_lite4",
    "EfficientNet": "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 tf_efficientnet_b0 "
    "tf_efficientnet_b1 tf_efficientnet_b3 tf_efficientnetv2_b0",
    "MNASNet": "mnasnet_050 mnasnet_100 mnasnet_small semnasnet_100",
    "RegNet": "regnetx_002 regnetx_008 regnetx_032 regnety_002 regnety_008 regnety_032",
    "ResNeXt": "resnext50_32x4d seresnext26d_32x4d",
    "SE-ResNet": "seresnet18 seresnet50",
    "ResNet-D": "resnet18d resnet26d resnet50d",
    "ResNetV2": "resnetv2_18 resnetv2_50 resnetv2_50d",
    "ResNet": "resnet18 resnet34 resnet50 wide_resnet50_2",
    "ConvNeXt": "convnext_atto convnext_femto convnext_pico convnext_nano convnext_tiny convnextv2_atto "
    "convnextv2_femto convnextv2_nano",
    "ViT": "vit_tiny_patch16_224 vit_small_patch16_224 deit_tiny_patch16_224 deit_tiny_distilled_patch16_224",
    "DeiT-3": "deit3_small_patch16_224",
    "DINOv2": "vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2",
    "CLIP ViT": "vit_base_patch32_clip_224 vit_base_patch16_clip_224",
    "others": "densenet121 repvgg_a0 mobileone_s0 swin_tiny_patch4_window7_224 vit_small_patch16_dinov3 "
    "vit_base_patch16_siglip_224 levit_128s xcit_nano_12_p16_224 mixnet_s ghostnet_100 efficientformer_l1 "
    "mobilevit_xxs fastvit_t8 tiny_vit_5m_224 hrnet_w18_small dla34 vgg11_bn inception_v3 nfnet_l0 pit_ti_224 "
    "mixer_s32_224 poolformer_s12 edgenext_xx_small res2net50_26w_4s skresnet18 resnet50_gn beit_base_patch16_224 "
    "coat_tiny mobilenetv4_hybrid_medium resnext26ts legacy_seresnet18 resnetv2_50x1_bit",
}
"""Kind of network → timm's names. All but the last are families that have to work."""
SIDE, PATCHES = 128, 7
"""Pixels of the images; of a network that is built for one size, so many patches a side."""
CLASSES = 10
HALF = 0.5
DEVICE = "rpi4"
"""The device to whose multiple of channels the widths are rounded."""
ROUNDS = 40
TRIES, CLOSE = 6, 0.03
"""Torch-Pruning is asked so often, or until it is so near to half."""


def side_of(name: str) -> int:
    """Pixels of the images for an architecture."""
    if Architecture(name, {}, {}, SIDE).sized:
        config = timm.get_pretrained_cfg(name)
        patch = int(name.partition("patch")[2].partition("_")[0])
        return PATCHES * patch if config is not None else SIDE
    return SIDE


def drawn(name: str, side: int) -> nn.Module:
    """The network with drawn weights, scales and statistics."""
    torch.manual_seed(0)
    sized = Architecture(name, {}, {}, side).sized
    model: nn.Module = timm.create_model(
        name, num_classes=CLASSES, **({"img_size": side} if sized else {})
    )
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.0)
    return model


def measured(name: str) -> dict[str, Any]:
    """The row of an architecture."""
    side = side_of(name)
    shape = (3, side, side)
    row: dict[str, Any] = {"name": name, "side": side}
    try:
        with TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.pth"
            torch.save(drawn(name, side).state_dict(), weights)
            backbone = load_backbone(f"{name}@{weights}", side)  # it refuses what cannot be pruned
        model = backbone.with_head(CLASSES)
        with torch.no_grad():
            for head in heads(model).values():
                head.weight.normal_(0, 0.1)
        row |= {"family": backbone.family.name, "groups": len(unit_groups(model))}
        half = half_widths(backbone.outline(CLASSES), side)
        row["mask_equals_cut"] = largest_difference(model, side)
        small = resize(model, half)
        counts = cross_check(small, shape)
        row["counts_agree"] = counts["fvcore"] == counts["hand"]  # it raises where they differ
        whole = forward_macs(model, shape)
        row |= {"macs": whole, "macs_share": counts["hand"] / whole}
        row |= exported(model, small, side)
    except (BadInput, BudgetMissed) as error:
        row["refusal"] = str(error)
    except GateFailed as error:
        row["gate"] = str(error)
    except Exception as error:  # noqa: BLE001 - what must not happen is what the row is for
        row["traceback"] = f"{type(error).__name__}: {error}"[:300]
        traceback.print_exc()
    return row


def half_widths(outline: nn.Module, side: int) -> dict[str, int]:
    """The widths that `prune` chooses where half of the multiply-adds are allowed, and nothing else is limited."""
    shape = (3, side, side)
    budgets = {"flops": int(HALF * forward_macs(outline, shape))}
    known = load_profile(DEVICE)
    device = known.model_copy(update={"budgets": Budgets.model_validate(budgets)})
    return Sizer(outline, None, shape, device, laws=()).solve(1.0).widths


def largest_difference(model: nn.Module, side: int) -> float:
    """Of the masked and the cut network with about 60 % of the units, relative to the largest logit."""
    rng = np.random.default_rng(0)
    groups = unit_groups(model)
    kept: dict[str, NDArray[np.int64]] = {
        group.name: np.sort(rng.permutation(group.size)[: max(1, group.size * 6 // 10)])
        for group in groups
    }
    image = torch.randn(2, 3, side, side, dtype=torch.float64)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        masked, cut = mask(exact, kept)(image), extract(exact, kept)(image)
    return float((masked - cut).abs().max() / masked.abs().max())


def exported(model: nn.Module, small: nn.Module, side: int) -> dict[str, Any]:
    """Parity of the cut network in both runtimes, and the time that it takes beside the whole one."""
    with TemporaryDirectory() as folder:
        paths = {}
        for name, network in (("small", small), ("whole", model)):
            graph, _ = onnx_graph(frozen(network, None), torch.zeros(1, 3, side, side), False)
            paths[name] = Path(folder) / f"{name}.onnx"
            paths[name].write_bytes(graph.SerializeToString())
        intermediate = Path(folder) / "small.xml"
        save_openvino(paths["small"], intermediate)
        images = np.random.default_rng(1).standard_normal((8, 3, side, side), np.float32)
        with torch.no_grad():
            reference = small(torch.from_numpy(images)).numpy()
        exact = copy.deepcopy(small).double()

        def precisely(rows: NDArray[np.int64]) -> NDArray[np.float64]:
            with torch.no_grad():
                logits: NDArray[np.float64] = exact(torch.from_numpy(images[rows]).double()).numpy()
            return logits

        differences = {}
        for runtime, path in (("onnxruntime", paths["small"]), ("openvino", intermediate)):
            session = loaded(
                runtime, path, **({"arithmetic": "f32"} if runtime == "openvino" else {})
            )
            parity = check_parity(
                reference,
                np.concatenate([session.run(images[i : i + 1]) for i in range(len(images))]),
                session,
                network="pruned",
                setting="float32",
                real_images=0,
                exact=precisely,
            )
            differences[runtime] = parity.max_difference / float(np.abs(reference).max())
        times = {name: loaded("onnxruntime", path) for name, path in paths.items()}
        return {"parity": differences, "latency_share": latency_share(times, images[:1])}


def latency_share(sessions: dict[str, Session], image: NDArray[np.float32]) -> float:
    """Time of the small network over that of the whole one: the median of ratios, timed in turn."""
    ratios = []
    for round_ in range(ROUNDS + 5):
        taken = {}
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(image)
            taken[name] = time.perf_counter() - start
        if round_ >= 5:  # warm
            ratios.append(taken["small"] / taken["whole"])
    return float(np.median(ratios))


def torch_pruning(name: str, side: int) -> dict[str, Any]:
    """What Torch-Pruning leaves when it is asked for half of the multiply-adds, or why it does not."""
    import torch_pruning as tp

    torch.manual_seed(0)
    image = torch.zeros(1, 3, side, side)

    def pruned(ratio: float) -> float:
        sized = Architecture(name, {}, {}, side).sized
        model: Any = timm.create_model(
            name, num_classes=10, **({"img_size": side} if sized else {})
        )
        model.eval()
        base, _ = tp.utils.count_ops_and_params(model, image)
        attention = [m for m in model.modules() if type(m).__name__ == "Attention"]
        pruner = tp.pruner.BasePruner(
            model,
            image,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[one for one in (model.get_classifier(),) if isinstance(one, nn.Module)],
            num_heads={one.qkv: one.num_heads for one in attention},
            prune_num_heads=bool(attention),
            head_pruning_ratio=ratio,
        )
        pruner.step()
        for one in attention:
            one.num_heads = pruner.num_heads[one.qkv]
            one.head_dim = one.qkv.out_features // (3 * one.num_heads)
            one.attn_dim = one.num_heads * one.head_dim
        with torch.no_grad():
            model(image)
        macs, _ = tp.utils.count_ops_and_params(model, image)
        return float(macs / base)

    shares: list[float] = []
    low, high = 0.05, 0.7
    try:
        while len(shares) < TRIES and not any(abs(one - HALF) < CLOSE for one in shares):
            ratio = (low + high) / 2
            shares.append(float(pruned(ratio)))
            low, high = (ratio, high) if shares[-1] > HALF else (low, ratio)
    except Exception as error:  # noqa: BLE001 - another project's error is a result
        first = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {first}"[:160]}
    nearest = min(shares, key=lambda one: abs(one - HALF))
    return {"macs_share": round(nearest, 3)}


def timed(work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """A result, and the seconds that it took."""
    start = time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="timm's names (default: all that have no row yet)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {name: kind for kind, names in ARCHITECTURES.items() for name in names.split()}
    rows = {}
    if ROWS.exists():
        rows = {row["name"]: row for row in map(json.loads, ROWS.read_text().splitlines())}
    for name in given.names or [name for name in kinds if name not in rows]:
        row, seconds = timed(lambda: measured(name))  # noqa: B023
        peer, _ = timed(lambda: torch_pruning(name, row["side"]))  # noqa: B023
        rows[name] = {**row, "seconds": seconds, "torch_pruning": peer}
        ordered = [{"kind": kind, **rows[one]} for one, kind in kinds.items() if one in rows]
        ROWS.write_text("".join(f"{json.dumps(one)}\n" for one in ordered), encoding="utf-8")
        print(json.dumps(rows[name]), flush=True)


if __name__ == "__main__":
    main()
