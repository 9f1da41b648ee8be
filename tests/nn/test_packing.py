"""Packing after loading: errors against float32, in plain, compiled and recorded products."""

from __future__ import annotations

import pytest
import torch

from keifu.core.errors import KeifuError
from keifu.inference.device import DevicePlan
from keifu.inference.lowering import Unplanned
from keifu.inference.record import Calls
from keifu.nn.kernels import formats_rows
from keifu.nn.kernels.formats import FORMATS, Packed
from keifu.nn.linear import Linear, Weight
from keifu.nn.packing import KINDS, pack
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from tests.inference.test_device import recorded, short
from tests.inference.test_plans import model_of

BOUND = {"int8": 0.01, "int4": 0.11, "fp8": 0.03}
"""Relative error of a product with normal weights: rounding errors of independent weights add as
their squares do, so it is that of one weight. int8: a step of max / 127 of 32 values, uniform, is
0.5 %; int4: 15 steps over the range of 32 values, 8 %; fp8: 3 bits after the leading one, 2.5 %.
bfloat16 products add 0.3 %."""


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_products_stay_within_their_bounds(kind: str, tokens: int) -> None:
    torch._dynamo.reset()  # it compiles one function for a few shapes only
    made = torch.Generator().manual_seed(0)
    layer = Linear(512, 192)
    torch.nn.init.normal_(layer.weight, std=0.3, generator=made)
    x = torch.randn(tokens, 512, generator=made)
    with torch.inference_mode():
        exact = layer(x)
        assert pack(torch.nn.Sequential(layer), kind) == 1
        compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=False)
        for found in (layer(x), compiled(x)):
            error = float((found - exact).norm() / exact.norm())
            assert BOUND[kind] / 20 < error < BOUND[kind]
        decoded = x @ layer.dense().T
    assert float((compiled(x) - decoded).norm() / decoded.norm()) < 0.005


def test_fp8_products_round_activations_too() -> None:
    made = torch.Generator().manual_seed(1)
    weight, x = torch.randn(96, 256, generator=made), torch.randn(3, 256, generator=made)
    data = formats_rows.FP8.quantize(weight)
    assert data.shape == (96, 256 + 16)
    assert formats_rows.FP8.finite(data)
    back = formats_rows.FP8.dequantize(data)
    assert float((back - weight).norm() / weight.norm()) < 0.03
    got = formats_rows.products(x.to(torch.bfloat16), data).float()
    exact = x @ weight.T
    assert 0.01 < float((got - exact).norm() / exact.norm()) < 0.045
    assert not formats_rows.units(torch.device("cpu"))


def test_fp8_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(KeifuError, match="16s of values, not of 40"):
        formats_rows.FP8.quantize(torch.ones(2, 40))
    with pytest.raises(KeifuError, match="not finite"):
        formats_rows.FP8.quantize(torch.full((2, 32), float("nan")))
    zeros = formats_rows.FP8.quantize(torch.zeros(2, 32))
    assert not bool(formats_rows.FP8.dequantize(zeros).any())


def test_tables_and_routers_stay_dense() -> None:
    model = model_of("mixtral")
    assert pack(model, "int8") > 0
    for name, module in model.named_modules():
        if isinstance(module, Weight) and ("router" in name or "input" in name):
            assert module.weight is not None, name
    with pytest.raises(KeifuError, match="int7"):
        pack(model, "int7")


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_recorded_steps_decode_packed_weights(name: str, kind: str) -> None:
    """Against the plain path with the same packed weights: products differ by bfloat16 alone."""
    model = model_of(name)
    exact = short(model, None, torch.float32)
    assert pack(model, kind) > 0
    got, plain = (short(model, make, torch.float32) for make in (recorded("eager"), None))
    assert float((got - plain).norm() / plain.norm()) < 0.02
    assert float((got - exact).norm() / exact.norm()) > 1e-3


def test_a_format_with_a_table_of_values_is_not_recorded() -> None:
    model = model_of("llama")
    layer = next(m for m in model.modules() if isinstance(m, Linear))
    format = FORMATS["iq4_nl"]
    data = torch.zeros(layer.outputs, format.row_bytes(layer.inputs), dtype=torch.uint8)
    layer.pack([Packed(data, format, layer.inputs)])
    assert isinstance(model, StackModule)
    pool = StatePool(model.spec.entries(), budget=1 << 20)
    with pytest.raises(Unplanned, match="iq4_nl"):
        DevicePlan(model, pool, 64, backend=None, record=Calls())
