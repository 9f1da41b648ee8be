"""Operations of a tape against PyTorch, attention over paged state, and whole blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.nn.activations import ACTIVATIONS
from keifu.nn.kernels import native
from keifu.nn.kernels.formats import Packed
from keifu.nn.kernels.program import Program
from keifu.nn.kernels.tape import Tape, Turn, Value
from keifu.nn.kernels.tiles import tile
from tests.nn.pasts import PAGE, Past, alike

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why())
LONG = 45  # tokens of a prompt: three parts of a dozen and more


@pytest.fixture(params=native.features(), autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on each instruction set that the machine has, with two threads."""
    best = native.current()
    native.force(request.param)
    native.set_threads(2)
    yield request.param
    native.force(best)
    native.set_threads(1)


def apply(build: Callable[[Tape, Value], Value], x: Tensor, **step: object) -> Tensor:
    """What a one-operation tape makes of x."""
    tape = Tape(len(x))
    given = tape.input(x.shape[1])
    out = tape.output(build(tape, given))
    program = Program(tape)
    program.view(given).copy_(x)
    program.run(tokens=[0] * len(x), **step)  # type: ignore[arg-type]
    return program.view(out).clone()


@pytest.mark.parametrize("width", [96, 100])
def test_norms(width: int) -> None:
    x, weight, bias = torch.randn(5, width) * 3 + 1, torch.randn(width), torch.randn(width)
    got = apply(lambda t, v: t.norm(v, weight, eps=1e-5), x)
    torch.testing.assert_close(got, F.rms_norm(x, (width,), weight, 1e-5))
    got = apply(lambda t, v: t.norm(v, weight, bias, eps=1e-5, kind="layer"), x)
    torch.testing.assert_close(got, F.layer_norm(x, (width,), weight, bias, 1e-5))
    got = apply(lambda t, v: t.norm(v, None, eps=1e-6, kind="layer"), x)
    torch.testing.assert_close(got, F.layer_norm(x, (width,), eps=1e-6))


def test_norm_by_head_in_part_of_a_value() -> None:
    x, shared, own = torch.randn(3, 100), torch.randn(20), torch.randn(4, 20)
    heads = x[:, 20:].unflatten(1, (4, 20))
    for weight in (shared, own):

        def build(tape: Tape, v: Value, weight: Tensor = weight) -> Value:
            part = v[20:100]
            tape.norm(part, weight, eps=1e-5, heads=4, into=part)
            return v

        got = apply(build, x)
        expected = F.rms_norm(heads, (20,), None, 1e-5) * weight
        torch.testing.assert_close(got, torch.cat([x[:, :20], expected.flatten(1)], 1))


@pytest.mark.parametrize("kind", [*ACTIVATIONS])
def test_activations(kind: str) -> None:
    x = torch.cat([torch.linspace(-100, 100, 301), torch.linspace(-5, 5, 301)])[None].repeat(3, 1)
    expected = ACTIVATIONS[kind](x.double())
    got = apply(lambda t, v: t.activate(kind, v), x)
    torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-6)
    got = apply(lambda t, v: t.activate(kind, v[:300], v[302:]), x)
    gated = ACTIVATIONS[kind](x[:, :300].double()) * x[:, 302:]
    torch.testing.assert_close(got.double(), gated, rtol=2e-6, atol=1e-5)


def test_sums_scales_and_bounds() -> None:
    x = torch.randn(3, 70) * 40
    cap = 30 * torch.tanh(x.double() / 30)
    got = apply(lambda t, v: t.softcap(v, 30.0), x)
    torch.testing.assert_close(got.double(), cap, rtol=1e-5, atol=1e-5)
    assert torch.equal(apply(lambda t, v: t.clamp(v, -8, 9), x), x.clamp(-8, 9))
    assert torch.equal(apply(lambda t, v: t.scale(v, 0.3), x), x * 0.3)
    got = apply(lambda t, v: t.add(v[:30], v[30:60], scale=0.5), x)
    torch.testing.assert_close(got, 0.5 * x[:, :30] + x[:, 30:60])


def test_lookup_by_token_and_position_then_choice_of_rows() -> None:
    words, places = torch.randn(50, 64), torch.randn(20, 64)
    packed = Packed.quantize(words, "q8_0")
    tape = Tape(4)
    x = tape.embed(tile(packed), scale=2.0)
    tape.embed(tile(places.half()), by="position", offset=2, into=x)
    out = tape.output(tape.scale(tape.select(x), 1.0))
    program = Program(tape)
    program.run(tokens=[3, 49, 0], positions=[17, 0, 5], chosen=[0, 2])
    expected = 2 * packed.dequantize()[[3, 0]] + places.half().float()[[19, 7]]
    torch.testing.assert_close(program.view(out, 2), expected)
    with pytest.raises(ValueError, match="embed"):
        program.run(tokens=[50], positions=[0])
    with pytest.raises(ValueError, match="embed"):
        program.run(tokens=[1], positions=[18])
    with pytest.raises(ValueError, match="select"):
        program.run(tokens=[1], positions=[0], chosen=[1])


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (n, heads, width), tables (n, pairs)."""
    half = cos.shape[1]
    turned, cos, sin = x[..., : 2 * half], cos[:, None], sin[:, None]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat([turned, x[..., 2 * half :]], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
def test_rotary(interleaved: bool, by_row: bool) -> None:
    angle = torch.randn(9, 6)
    turn = Turn(cos=angle.cos(), sin=angle.sin(), interleaved=interleaved, by_row=by_row)
    x = torch.randn(3, 60)
    positions = [7, 0, 8]
    at = [0, 1, 2] if by_row else positions
    got = apply(lambda t, v: t.rotary(v, turn, heads=3), x, positions=positions)
    expected = rotated(x.unflatten(1, (3, 20)), turn.cos[at], turn.sin[at], interleaved)
    torch.testing.assert_close(got, expected.flatten(1))


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "alibi": {"slopes": torch.tensor([0.5, 0.1, 0.02, 0.01, 0.005, 0.3])},
    "window": {"window": 33},
    "sinks": {"window": 33, "sinks": 5},
}
SHAPES = [(6, 2, 64), (6, 6, 80), (6, 1, 128), (6, 3, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_attention(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Rows of two requests mixed, several of one in a step, pages shuffled, NaN all around."""
    heads, kv_heads, width = shape
    past, owners = Past(heads, kv_heads, width, dtype), [1, 0, 1, 1, 0]
    q, k, v = (torch.randn(5, n * width) for n in (heads, kv_heads, kv_heads))
    scale = width**-0.5
    expected, lengths = past.expect(q, k, v, owners, scale=scale, **OPTIONS[name])

    def build(tape: Tape, x: Value) -> Value:
        parts = x.split(heads * width, kv_heads * width, kv_heads * width)
        state = (past.keys, past.values)
        return tape.attend(*parts, *state, page=PAGE, scale=scale, **OPTIONS[name])  # type: ignore[arg-type]

    x = torch.cat([q, k, v], 1)
    got = apply(build, x, lengths=lengths, owners=owners, tables=[past.table])
    alike(got, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(6, 2, 64), (4, 4, 80), (8, 1, 20), (10, 2, 32), (4, 2, 128)])
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_of_a_prompt(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Runs of rows attend together: two prompts and a lone row in one step, after a past."""
    heads, kv_heads, width = shape
    past, owners = Past(heads, kv_heads, width, dtype), [1] * 21 + [0] * 6 + [1]
    options = dict(OPTIONS[name])
    if "slopes" in options:
        options["slopes"] = torch.linspace(0.5, 0.01, heads)
    q, k, v = (torch.randn(len(owners), n * width) for n in (heads, kv_heads, kv_heads))
    scale = width**-0.5
    expected, lengths = past.expect(q, k, v, owners, scale=scale, **options)

    def build(tape: Tape, x: Value) -> Value:
        parts = x.split(heads * width, kv_heads * width, kv_heads * width)
        state = (past.keys, past.values)
        return tape.attend(*parts, *state, page=PAGE, scale=scale, **options)  # type: ignore[arg-type]

    x = torch.cat([q, k, v], 1)
    got = apply(build, x, lengths=lengths, owners=owners, tables=[past.table])
    alike(got, expected, dtype)


@pytest.mark.parametrize("rows", [1, 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_what_is_not_a_number_shows(rows: int, dtype: torch.dtype) -> None:
    past, x = Past(4, 2, 32, dtype), torch.randn(rows, 8 * 32)
    x[0, 128 + 64 + 3] = float("nan")  # an element of the first value head

    def build(tape: Tape, v: Value) -> Value:
        return tape.attend(*v.split(128, 64, 64), past.keys, past.values, page=PAGE, scale=0.2)

    step = {"lengths": [1101 + i for i in range(rows)], "owners": [1] * rows}
    got = apply(build, x, tables=[past.table], **step)
    assert got[:, 3].isnan().all()
    assert got[:, 64:].isfinite().all()


def test_early_pages_may_be_gone() -> None:
    past = Past(4, 2, 32, torch.float32)
    x = torch.randn(1, 8 * 32)
    expected = past._one(
        x[0, :128].double(),
        torch.cat([past.past[1].double(), x[0, 128:].view(2, 1, 2, 32).double()], 1),
        scale=0.2,
        window=1101 - 40,
    )
    past.table[1, :2] = -1

    def build(tape: Tape, v: Value) -> Value:
        parts = v.split(128, 64, 64)
        return tape.attend(*parts, past.keys, past.values, page=PAGE, scale=0.2)

    step = {"lengths": [1101], "owners": [1], "tables": [past.table]}
    got = apply(build, x, starts=[40], **step)
    torch.testing.assert_close(got[0].double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="attend"):
        apply(build, x, **step)
    with pytest.raises(ValueError, match="attend"):
        apply(build, x, **step | {"lengths": [80 * PAGE + 1]})
    with pytest.raises(ValueError, match="owners"):
        apply(build, x, **step | {"owners": [2]})


def block(tape: Tape, state: list[Tensor], turn: Turn, wiring: str) -> Value:
    """A small decoder of one layer in three wirings, and its head."""
    torch.manual_seed(0)

    def packed(rows: int, cols: int, name: str = "q4_1") -> list:  # type: ignore[type-arg]
        return [tile(Packed.quantize(torch.randn(rows, cols) * cols**-0.5, name))]

    def norm(v: Value) -> Value:
        return tape.norm(v, torch.rand(64) + 0.5, eps=1e-5)

    table = packed(100, 64, "q8_0")
    x = tape.embed(table[0])
    n = norm(x)
    q_k_v = tape.linear(n, packed(64, 64) + packed(32, 64) + packed(32, 64, "q8_0"))
    q, k, v = q_k_v.split(64, 32, 32)
    a = tape.attend(q, k, v, *state, page=PAGE, scale=0.25, turn=turn)
    out = packed(64, 64)
    if wiring == "sandwich":
        tape.add(norm(tape.linear(a, out)), x, into=x)
    else:
        tape.linear(a, out, into=x, add=True)
    m = n if wiring == "parallel" else norm(x)
    gate, up = tape.linear(m, packed(96, 64) + packed(96, 64)).split(96, 96)
    tape.linear(tape.activate("silu", gate, up), packed(64, 96), into=x, add=True)
    return tape.output(tape.linear(norm(tape.select(x)), table))


def turn_for(entries: int, pairs: int) -> Turn:
    angle = torch.arange(entries)[:, None] / 100 ** (torch.arange(pairs) / pairs)
    return Turn(cos=angle.cos(), sin=angle.sin())


@pytest.mark.parametrize("wiring", ["pre", "parallel", "sandwich"])
@pytest.mark.parametrize("exact", [True, False])
def test_any_batch_gives_the_same_bits(wiring: str, exact: bool) -> None:
    """A token alone = in a batch; a prompt whole = in parts = beside others; on any threads.

    A dozen rows of a prompt share their keys, which changes the order of a sum: nearly equal.
    """
    tokens = torch.randint(0, 100, (2, LONG)).tolist()
    logits = {}
    for plan in ("single", "pairs", "whole", "mixed"):
        native.set_threads(1 if plan == "single" else 2)
        state = [torch.zeros(8 * PAGE, 2, 16, dtype=torch.bfloat16) for _ in "kv"]
        tape = Tape(LONG, exact=exact)
        out = block(tape, state, turn_for(64, 8), wiring)
        program = Program(tape)
        table = np.array([[5, 2, 3], [0, 7, 1]], dtype=np.int32)
        got = torch.zeros(2, LONG, 100)
        for rows in steps(plan):
            owners, at = [r[0] for r in rows], [r[1] for r in rows]
            program.run(
                tokens=[tokens[o][p] for o, p in rows],
                positions=at,
                lengths=[p + 1 for p in at],
                owners=owners,
                tables=[table],
                chosen=list(range(len(rows))),
            )
            got[owners, at] = program.view(out, len(rows))
        logits[plan] = got
    assert logits["whole"].isfinite().all()
    assert logits["whole"].std() > 0.1
    assert torch.equal(logits["single"], logits["pairs"])
    assert torch.equal(logits["whole"], logits["mixed"])
    near = 1e-5 if exact else 1e-3
    torch.testing.assert_close(logits["single"], logits["whole"], rtol=0, atol=near)


def steps(plan: str) -> list[list[tuple[int, int]]]:
    """Rows (request, position) of each step."""
    if plan == "single":
        return [[(o, p)] for o in range(2) for p in range(LONG)]
    if plan == "whole":
        return [[(o, p) for p in range(LONG)] for o in range(2)]
    if plan == "pairs":
        return [[(1, p), (0, p)] for p in range(LONG)]
    bounds = [(0, 0, 12), (1, 0, 19), (0, 12, 29), (1, 19, 31), (0, 29, LONG), (1, 31, LONG)]
    parts = [[(o, p) for p in range(a, b)] for o, a, b in bounds]
    return [parts[0] + parts[1], parts[2] + parts[3], parts[4] + parts[5]]


def test_buffers_share_memory_and_waits_are_few() -> None:
    """A parallel block's projections of one norm run without waiting for each other."""
    state = [torch.zeros(PAGE, 2, 16) for _ in "kv"]
    counts = {}
    for wiring in ("pre", "parallel"):
        tape = Tape(4)
        block(tape, state, turn_for(16, 8), wiring)
        program = Program(tape)
        assert program.nbytes < sum(b.bytes for b in tape.buffers) * 4
        counts[wiring] = program.barriers
    assert counts["parallel"] < counts["pre"]


def test_values_that_do_not_fit_are_refused() -> None:
    tape = Tape(2)
    x = tape.input(64)
    with pytest.raises(ValueError, match="do not fit"):
        tape.linear(x, [tile(torch.zeros(8, 32))])
    with pytest.raises(KeifuError, match="nearest: gelu"):
        tape.activate("gelo", x)
    state = torch.zeros(30, 1, 32)
    with pytest.raises(ValueError, match="power of two"):
        tape.attend(x, x[:32], x[:32], state, state, page=15, scale=1.0)
    with pytest.raises(ValueError, match="step of 3"):
        Program(tape).run(tokens=[1, 2, 3])


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0", "q4_k", "q6_k"])
def test_coarse_rows_meet_weights_in_eight_bits(kind: str) -> None:
    """A coarse row's activations are rounded to 8 bits a block of 32, whoever shares its step."""
    torch.manual_seed(0)
    weight, x = Packed.quantize(torch.randn(48, 512), kind), torch.randn(20, 512) * 3
    step = x.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    rounded = ((x.unflatten(1, (-1, 32)) / step).round() * step).flatten(1)
    exact = weight.dequantize().double()
    coarse = torch.tensor([True] * 17 + [False] * 3)
    expected = torch.where(coarse[:, None], rounded, x).double() @ exact.T
    tiled = tile(weight)
    got = apply(lambda t, v: t.linear(v, [tiled]), x, coarse=coarse.numpy())
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=5e-3)
    assert (got[:17].double() - x[:17].double() @ exact.T).abs().max() > 2e-2
    fine = apply(lambda t, v: t.linear(v, [tiled]), x)
    assert torch.equal(got[17:], fine[17:])
    for rows in (slice(3, 4), slice(2, 9), slice(1, 17)):
        alone = apply(lambda t, v: t.linear(v, [tiled]), x[rows], coarse=coarse[rows].numpy())
        assert torch.equal(alone, got[rows])
