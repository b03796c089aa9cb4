"""What PyTorch reaches on this GPU: the ceilings that ours is put against, in one run. Needs torch only."""

import time

import torch

torch.manual_seed(0)


def best(work, runs=20):
    for _ in range(3):
        work()
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(runs):
            work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) / runs)
    return min(times)


def main():
    print(torch.cuda.get_device_name(), torch.__version__, torch.version.cuda)
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = best(lambda: target.copy_(source))
    print(f"copy {2 * source.numel() / seconds / 1e9:.0f} GB/s (read and written)")
    del source, target
    for n in (4096, 8192):
        a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        print(f"bf16 matmul {n}: {2 * n**3 / best(lambda: a @ b) / 1e12:.0f} TFLOP/s")
    # The linears of a layer of an 8B, as decoding needs them.
    shapes = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
    for rows in (1, 8, 256):
        total = 0.0
        for out, width in shapes:
            weights = [torch.randn(out, width, dtype=torch.bfloat16, device="cuda") for _ in range(4)]
            x = torch.randn(rows, width, dtype=torch.bfloat16, device="cuda")
            turn = iter(range(10**9))
            total += best(lambda: x @ weights[next(turn) % 4].T)
        print(f"bf16 linears of an 8B layer, {rows} rows: {total * 1e6:.1f} us")
    for rows in (1, 8, 256):
        total = 0.0
        try:
            for out, width in shapes:
                codes = torch.randint(0, 255, (out, width // 2), dtype=torch.uint8, device="cuda")
                packed = [torch._convert_weight_to_int4pack(codes, 8) for _ in range(4)]
                scales = torch.ones(width // 128, out, 2, dtype=torch.bfloat16, device="cuda")
                x = torch.randn(rows, width, dtype=torch.bfloat16, device="cuda")
                turn = iter(range(10**9))
                total += best(
                    lambda: torch._weight_int4pack_mm(x, packed[next(turn) % 4], 128, scales)
                )
            print(f"int4 linears of an 8B layer, {rows} rows: {total * 1e6:.1f} us")
        except RuntimeError as error:
            print(f"int4 linears, {rows} rows: {error}")
    heads = (1, 32, 16384, 128)
    q, k, v = (torch.randn(heads, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    seconds = best(lambda: attend(q, k, v, is_causal=True), 5)
    print(f"causal attention of 16384, 32 heads of 128: {2 * 16384**2 * 128 * 32 / seconds / 1e12:.0f} TFLOP/s")


main()
