"""Runs the same student's step in PyTorch, in float, which a user of a GPU would take otherwise.

`StudentStep` is written to PyTorch's advantage. One product gives q, k and v, and another gives gate and up. Rings of W
slots are written in place, so that nothing is copied. Each layer gathers its age biases once, and attention is
`scaled_dot_product_attention`. Everything is static, so that a CUDA graph can replay it. A step goes host to host: the
bin comes from pinned memory, and the result goes into pinned memory. Without PyTorch, or where it fails, a peer has a
reason in place of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape

try:
    import torch
    from torch.nn import functional as F
except ImportError as error:
    torch, MISSING = None, f"PyTorch is not there ({error}): pip install torch, for this machine's CUDA"
else:
    MISSING = None if torch.cuda.is_available() else f"PyTorch {torch.__version__} sees no GPU: it lacks CUDA"

PRECISIONS = ("float32", "float16")
WARMUP = 20
EPS = 1e-6

Weights = dict[str, npt.NDArray[np.float32]]
Call = Callable[[npt.NDArray[Any]], object]  # takes a bin in host memory; the step has ended when it returns
Through = Callable[[Callable[[], None]], Callable[[], object]]  # turns a step into a compiled or recorded one


@dataclass(frozen=True)
class Peer:
    """A call from host memory to host memory, or the reason why there is none."""

    call: Call | None
    reason: str | None = None


# ---------------------------------------------------------------- the step


class StudentStep:
    """A student with float weights on a device. `step` reads `bin` and writes `out`, two tensors that stay in place."""

    def __init__(self, shape: StudentShape, weights: Weights, precision: str, device: str = "cuda") -> None:
        self.shape, self.device = shape, device
        self.dtype = getattr(torch, precision)
        window, heads = shape.window, shape.heads
        self.embed, self.embed_bias = self._place(weights["embed.weight"]), self._place(weights["embed.bias"])
        self.layers = [self._place_layer(weights, f"layers.{i}.") for i in range(shape.layers)]
        self.readout = self._place(weights["readout.latent"] * weights["norm_out"])
        self.of_bins, self.bias = self._place(weights["readout.lags"]), self._place(weights["readout.bias"])
        self.rings = torch.zeros(shape.layers, 2, heads, window, shape.head_dim, dtype=self.dtype, device=device)
        self.bins = torch.zeros(shape.lag_rows + 1, shape.channels, dtype=self.dtype, device=device)
        self.taps = torch.arange(shape.taps, device=device) * shape.dilation
        self.slots = torch.arange(window, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)  # of the bin that comes next
        self.live = torch.zeros(1, dtype=torch.long, device=device)  # bins before it, at most window - 1
        self.bin = torch.zeros(shape.channels, dtype=torch.float32, device=device)
        self.out = torch.zeros(shape.outputs, dtype=torch.float32, device=device)

    def _place(self, values: npt.NDArray[np.float32]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device, self.dtype)

    def _place_layer(self, weights: Weights, name: str) -> dict[str, Any]:
        """Returns the tensors of a layer. Gains of the norms are folded into the products, as in the INT8 student."""
        attn, mlp = weights[f"{name}norm_attn"], weights[f"{name}norm_mlp"]
        stacked = {
            "qkv": np.concatenate([weights[f"{name}w{part}"] for part in "qkv"]) * attn,
            "gate_up": np.concatenate([weights[f"{name}wgate"], weights[f"{name}wup"]]) * mlp,
            "out": weights[f"{name}wo"],
            "down": weights[f"{name}wdown"],
            "age_bias": weights[f"{name}age_bias"],
        }
        return {part: self._place(values) for part, values in stacked.items()}

    def step(self) -> None:
        """Decodes one bin."""
        shape = self.shape
        self.bins.copy_(torch.cat([self.bin.to(self.dtype)[None], self.bins[:-1]]))
        x = F.linear(self.bins[self.taps].flatten(), self.embed, self.embed_bias)
        age = (self.slot - self.slots) % shape.window
        dead = age > self.live
        for layer, (ring_k, ring_v) in zip(self.layers, self.rings, strict=True):
            q, k, v = F.linear(normalize(x), layer["qkv"]).view(3, shape.heads, 1, shape.head_dim)
            ring_k.index_copy_(1, self.slot, k)
            ring_v.index_copy_(1, self.slot, v)
            bias = layer["age_bias"][:, age].masked_fill(dead, float("-inf"))[:, None]
            batch = (q[None], ring_k[None], ring_v[None])  # fused kernels need four dimensions
            context = F.scaled_dot_product_attention(*batch, attn_mask=bias[None])
            x = x + F.linear(context.flatten(), layer["out"])
            gate, up = F.linear(normalize(x), layer["gate_up"]).chunk(2)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        lagged = self.bins[: shape.lags + 1].flatten()
        self.out.copy_(F.linear(normalize(x), self.readout, self.bias) + F.linear(lagged, self.of_bins))
        self.slot.copy_((self.slot + 1) % shape.window)
        self.live.copy_((self.live + 1).clamp_max(shape.window - 1))


def normalize(x: Any) -> Any:
    """Returns x over its root mean square, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean() + EPS)).to(x.dtype)


# ---------------------------------------------------------------- ways to run it


def make_student_peers(shape: StudentShape, weights: Weights, with_compile: bool = True) -> dict[str, Peer]:
    """Returns every way to run the step, by name. Copies are tried inside the graph and around it."""
    peers: dict[str, Peer] = {}
    for precision in PRECISIONS:

        def make_student(precision: str = precision) -> StudentStep:
            return StudentStep(shape, weights, precision)

        peers[f"PyTorch eager, {precision}"] = try_peer(lambda make=make_student: make_eager_call(make()))
        peers[f"PyTorch CUDA graph, {precision}"] = try_peer(lambda make=make_student: make_graph_call(make()))
        around = try_peer(lambda make=make_student: make_eager_call(make(), record_replay))
        peers[f"PyTorch CUDA graph, copies around it, {precision}"] = around
        if with_compile:
            peers[f"torch.compile, {precision}"] = try_peer(
                lambda make=make_student: make_eager_call(make(), torch.compile)
            )
            in_graph = try_peer(lambda make=make_student: make_graph_call(make(), torch.compile))
            peers[f"torch.compile in a CUDA graph, {precision}"] = in_graph
    return peers


def try_peer(make: Callable[[], Call]) -> Peer:
    """Returns the call that `make` makes, or why it fails."""
    if MISSING:
        return Peer(None, MISSING)
    try:
        call = make()
        call(np.zeros(1, np.float32))
    except Exception as error:  # PyTorch raises anything, and a peer that fails is only a missing figure
        return Peer(None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")
    return Peer(call)


def make_eager_call(student: StudentStep, through: Through = lambda step: step) -> Call:
    """Makes a call that copies in, steps, copies out and waits. It is warm, and so compiled if `through` compiles."""
    bin_, out, stream = allocate_pinned(student.bin), allocate_pinned(student.out), torch.cuda.current_stream()
    given = bin_.numpy()
    step = through(student.step)

    def call(row: npt.NDArray[Any]) -> None:
        given[: len(row)] = row
        with torch.inference_mode():
            student.bin.copy_(bin_, non_blocking=True)
            step()
            out.copy_(student.out, non_blocking=True)
        stream.synchronize()

    for _ in range(WARMUP):
        call(np.zeros(1, np.float32))
    return call


def make_graph_call(student: StudentStep, through: Through = lambda step: step) -> Call:
    """Makes a call that replays one CUDA graph of both copies and the step."""
    bin_, out, stream = allocate_pinned(student.bin), allocate_pinned(student.out), torch.cuda.current_stream()
    given = bin_.numpy()
    step = through(student.step)

    def whole() -> None:
        student.bin.copy_(bin_, non_blocking=True)
        step()
        out.copy_(student.out, non_blocking=True)

    replay = record_replay(whole)

    def call(row: npt.NDArray[Any]) -> None:
        given[: len(row)] = row
        replay()
        stream.synchronize()

    return call


def record_replay(work: Callable[[], object]) -> Callable[[], None]:
    """Records a CUDA graph of `work`, which first runs on a side stream as capturing demands. Returns its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(WARMUP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        work()
    return graph.replay


def allocate_pinned(like: Any) -> Any:
    """Returns pinned host memory of the size of a tensor, which the device copies from and to directly."""
    return torch.zeros(like.shape, dtype=like.dtype).pin_memory()


# ---------------------------------------------------------------- the core


def make_core_peers(heads: int, window: int, head_dim: int) -> dict[str, Peer]:
    """Returns `scaled_dot_product_attention` of one query a head over a window in order, without ring and ages."""

    def make(precision: str, as_graph: bool) -> Call:
        generator = torch.Generator("cuda").manual_seed(0)
        sizes = ((1, heads, 1, head_dim), (1, heads, window, head_dim), (1, heads, window, head_dim))
        options = {"dtype": getattr(torch, precision), "device": "cuda", "generator": generator}
        q, k, v = (torch.randn(size, **options) for size in sizes)
        mask, stream = torch.randn(1, heads, 1, window, **options), torch.cuda.current_stream()

        def work() -> object:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        run = record_replay(work) if as_graph else work

        def call(row: npt.NDArray[Any]) -> None:
            with torch.inference_mode():
                run()
            stream.synchronize()

        return call

    ways = {"eager": False, "CUDA graph": True}
    return {
        f"scaled_dot_product_attention, {precision}, {way}": try_peer(lambda p=precision, g=as_graph: make(p, g))
        for precision in PRECISIONS
        for way, as_graph in ways.items()
    }
