"""LaMDA: T5's decoder without its encoder is the same network; the published size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from keifu.checkpoints.transfer import fill
from keifu.families.lamda import LaMDA
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from tests.families.parity import Tensors, greedy, randomise, tokens


@torch.no_grad()
@pytest.mark.parametrize(("buckets", "distance"), [(8, 12), (32, 128)])
def test_equals_t5_as_a_decoder_alone(buckets: int, distance: int) -> None:
    config = T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2,
        num_heads=4, relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance, feed_forward_proj="gated-gelu",
        is_decoder=True, use_cache=False, dropout_rate=0.0,
    )  # fmt: skip
    theirs: Any = T5Stack(config)
    randomise(theirs.eval())
    head = torch.randn(96, 32, generator=torch.Generator().manual_seed(9)) * 0.3
    published = {
        f"decoder.{name.replace('.layer.2.', '.layer.1.')}": value
        for name, value in theirs.state_dict().items()
        if "EncDec" not in name and ".layer.1." not in name
    }
    published |= {"shared.weight": published["decoder.embed_tokens.weight"], "lm_head.weight": head}
    own = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads",
           "relative_attention_num_buckets", "relative_attention_max_distance",
           "feed_forward_proj", "layer_norm_epsilon")  # fmt: skip
    family = LaMDA.from_hf({key: getattr(config, key) for key in own})
    ours = build(family.spec(), device="meta")
    assert isinstance(ours, StackModule)
    fill(ours.eval(), family.names(), Tensors(published))

    def expected(ids: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = theirs(input_ids=ids, attention_mask=mask).last_hidden_state @ head.T
        return out

    ids = tokens(96, 3, 29)
    torch.testing.assert_close(ours(ids).logits, expected(ids), atol=1e-4, rtol=1e-4)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    got, keep = ours(ids, attention_mask=mask).logits, mask.bool()
    torch.testing.assert_close(got[keep], expected(ids, mask)[keep], atol=1e-4, rtol=1e-4)
    row = ids[:1, :9]
    for _ in range(12):
        row = torch.cat([row, expected(row)[:, -1:].argmax(-1)], 1)
    assert greedy(ours, ids[0, :9].tolist(), 12) == row[0, 9:].tolist()


def test_the_published_size() -> None:
    """Matrices of the blocks: 64 layers of 128 heads of 128, d 8192, d_ff 65536."""
    model = build(LaMDA().spec(), device="meta")
    assert isinstance(model, StackModule)
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    assert matrices == 137_438_953_472
    rest = sum(p.numel() for p in model.parameters()) - matrices
    assert rest == 2 * 32000 * 8192 + (2 * 64 + 1) * 8192 + 32 * 128
