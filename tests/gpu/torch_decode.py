"""What a step of decoding an 8B takes in PyTorch on this GPU: a layer with torch.compile, its linears in bf16
and by PyTorch's own int4 matmul, over keys and values of so many sequences; 32 of them and a head.

    python3 torch_decode.py [SEQUENCES] [POSITIONS] [cuda|cpu]

On the CPU sizes are small: that only shows that the script runs."""

import sys
import time

import torch
from torch import nn
from torch.nn import functional

SEQUENCES = int(sys.argv[1]) if len(sys.argv) > 1 else 256
POSITIONS = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
DEVICE = sys.argv[3] if len(sys.argv) > 3 else "cuda"
SMALL = DEVICE == "cpu"
WIDTH, INNER, HEADS, KEYS, DIM, LAYERS = (256, 512, 4, 2, 64, 2) if SMALL else (4096, 14336, 32, 8, 128, 32)
VOCAB = 1000 if SMALL else 128256


class Int4(nn.Module):
    """Groups of 128, by torch._weight_int4pack_mm."""

    def __init__(self, width, out):
        super().__init__()
        codes = torch.randint(0, 255, (out, width // 2), dtype=torch.uint8, device=DEVICE)
        self.codes = torch._convert_weight_to_int4pack(codes, 8)
        self.scales = torch.ones(width // 128, out, 2, dtype=torch.bfloat16, device=DEVICE)

    def forward(self, x):
        return torch._weight_int4pack_mm(x, self.codes, 128, self.scales)


def dense(width, out):
    return nn.Linear(width, out, bias=False, dtype=torch.bfloat16, device=DEVICE)


class Layer(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.norms = nn.ParameterList([torch.ones(WIDTH, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)])
        self.qkv = linear(WIDTH, (HEADS + 2 * KEYS) * DIM)
        self.o = linear(HEADS * DIM, WIDTH)
        self.gate_up = linear(WIDTH, 2 * INNER)
        self.down = linear(INNER, WIDTH)

    def forward(self, x, keys, values, cos, sin, at):
        y = functional.rms_norm(x, (WIDTH,), self.norms[0])
        q, k, v = self.qkv(y).view(-1, HEADS + 2 * KEYS, DIM).split([HEADS, KEYS, KEYS], dim=1)
        turn = lambda h: h * cos + torch.cat((-h[..., DIM // 2 :], h[..., : DIM // 2]), dim=-1) * sin
        keys[:, :, at] = turn(k)
        values[:, :, at] = v
        y = functional.scaled_dot_product_attention(turn(q).unsqueeze(2), keys, values, enable_gqa=True)
        x = x + self.o(y.reshape(-1, HEADS * DIM))
        gate, up = self.gate_up(functional.rms_norm(x, (WIDTH,), self.norms[1])).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


def wait():
    if not SMALL:
        torch.cuda.synchronize()


def best(work, runs=20):
    for _ in range(3):
        work()
    times = []
    for _ in range(3):
        wait()
        begun = time.perf_counter()
        for _ in range(runs):
            work()
        wait()
        times.append((time.perf_counter() - begun) / runs)
    return min(times)


@torch.inference_mode()
def main():
    torch.manual_seed(0)
    x = torch.randn(SEQUENCES, WIDTH, dtype=torch.bfloat16, device=DEVICE)
    shape = (SEQUENCES, KEYS, POSITIONS, DIM)
    # Two layers in turn, so that nothing is in a cache.
    caches = [[torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)] for _ in range(2)]
    cos, sin = (torch.randn(DIM, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    head = dense(WIDTH, VOCAB)
    of_head = best(lambda: head(x))
    for name, linear in (("bf16", dense), ("int4", Int4)):
        try:
            layers = [Layer(linear) for _ in range(2)]
            run = torch.compile(lambda layer, x, k, v: layer(x, k, v, cos, sin, POSITIONS - 1))
            turn = iter(range(10**9))

            def one():
                i = next(turn) % 2
                return run(layers[i], x, *caches[i])

            layer = best(one)
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: {str(error).splitlines()[0]}")
            continue
        step = LAYERS * layer + of_head
        print(
            f"{name}, {SEQUENCES} sequences at {POSITIONS}: {layer * 1e6:.1f} us a layer, {of_head * 1e6:.1f} us the "
            f"head: {step * 1e3:.2f} ms a step, {SEQUENCES / step:.0f} tokens/s"
        )


main()
