"""ViT, DeiT, DeiT-3, DINOv2 and CLIP's image encoder: heads, the rows within heads, and MLP nodes of each block."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mvp_edge.families.family import Family, LayerRule
from mvp_edge.recipe import Recipe
from mvp_edge.structure.units import Cut, Follows, Point, Rescaled, UnitGroup
from mvp_edge_export.devices.operators import Row
from mvp_edge_export.errors import BadInput


def _vit(model: Any, _policy: str) -> Iterator[UnitGroup]:
    """ViT / DeiT: the heads of each block, the rows within its heads, and the nodes of its MLP."""
    if getattr(model, "attn_pool", None) is not None:
        raise BadInput(
            f"attn_pool ({type(model.attn_pool).__name__}) is in the way: plain ViT / DeiT can be pruned"
        )
    for index, block in enumerate(model.blocks):
        at = f"blocks.{index}"
        _check_vit_block(block, at)
        heads, dim = int(block.attn.num_heads), int(block.attn.head_dim)
        rows = [t for t in ("weight", "bias") if getattr(block.attn.qkv, t) is not None]
        qkv = [
            (f"{at}.attn.qkv.{tensor}", part * heads * dim) for tensor in rows for part in range(3)
        ]
        proj = f"{at}.attn.proj"
        yield UnitGroup(
            f"{at}.heads",
            "head",
            heads,
            (*(Cut(t, 0, o, width=dim) for t, o in qkv), Cut(f"{proj}.weight", 1, width=dim)),
            (Point(proj, "input", -1),),
            width=dim,
            follows=(Follows(f"{at}.attn", "num_heads"),),
            rounded=False,
        )
        every_head = {"repeat": heads, "period": dim}
        yield UnitGroup(
            f"{at}.head_dim",
            "head_dim",
            dim,
            (*(Cut(t, 0, o, **every_head) for t, o in qkv), Cut(f"{proj}.weight", 1, **every_head)),
            rescaled=tuple(Rescaled(Cut(t, 0, o, **every_head), 0.5) for t, o in qkv if o == 0),
            follows=(Follows(f"{at}.attn", "head_dim"),),
            rounded=False,
            last_resort=True,
        )
        fc1, fc2 = f"{at}.mlp.fc1", f"{at}.mlp.fc2"
        cuts = [Cut(f"{fc1}.weight", 0), Cut(f"{fc2}.weight", 1)]
        if block.mlp.fc1.bias is not None:
            cuts.append(Cut(f"{fc1}.bias", 0))
        nodes = int(block.mlp.fc1.out_features)
        yield UnitGroup(f"{at}.nodes", "node", nodes, tuple(cuts), (Point(fc2, "input", -1),))


def _check_vit_block(block: Any, at: str) -> None:
    expected = {"attn": "Attention", "mlp": "Mlp"}
    for name, kind in expected.items():
        module = getattr(block, name, None)
        if type(module).__name__ != kind:
            raise BadInput(
                f"{at}.{name} is a {type(module).__name__}: only timm's {kind} can be pruned"
            )
    for name in ("attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"):
        module = block.get_submodule(name)
        if not isinstance(module, nn.Identity):
            raise BadInput(
                f"{at}.{name} ({type(module).__name__}) is in the way: plain ViT / DeiT can be pruned"
            )
    if getattr(block.attn, "gate", None) is not None:
        raise BadInput(f"{at}.attn.gate is in the way: plain ViT / DeiT can be pruned")


def _follow(model: Any) -> None:
    """The attributes of attention that timm computes from its number of heads and their size."""
    for block in model.blocks:
        block.attn.attn_dim = block.attn.num_heads * block.attn.head_dim
        block.attn.scale = block.attn.head_dim**-0.5


def _attention_macs(layer: Any, x: torch.Tensor) -> int:
    """q·kᵀ, and the weighted sum of the values."""
    images, tokens, _ = x.shape
    return int(2 * images * tokens**2 * layer.num_heads * layer.head_dim)


def _attention_operators(layer: Any, x: torch.Tensor) -> list[Row]:
    """q·kᵀ, softmax, and the weighted sum of the values."""
    tokens, dim = x.shape[1], layer.head_dim
    rows = x.shape[0] * layer.num_heads * tokens
    return [
        ("matmul", rows, tokens, dim, 1, rows * dim),
        ("softmax", rows, tokens, 0, 1, rows * tokens),
        ("matmul", rows, dim, tokens, 1, rows * tokens),
    ]


VIT = Family(
    name="vit",
    title="ViT, DeiT, DINOv2",
    classes=("timm.models.vision_transformer.VisionTransformer",),
    policies=("heads-nodes",),
    groups=_vit,
    recipe=Recipe(optimizer="adamw", lr=2e-4, weight_decay=0.05),
    iterative=("ahnp",),
    from_scratch="ahnp",
    settings={"ahnp": {"schedule": "hold"}},
    layers={"Attention": LayerRule("attention", _attention_macs, _attention_operators, 2500)},
    follow=_follow,
)
