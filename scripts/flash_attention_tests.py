"""How many cases a second flash-attention's own test of packed sequences checks: its arithmetic, on our list of its cases.

For each case of a suite's list, as tests/test_flash_attn.py of github.com/Dao-AILab/flash-attention does: draw padded tensors and
unpad them, run the packed kernel (here LibTorch's copy of FlashAttention-2), run attention in plain PyTorch twice, in float32 and
in the dtype itself, take the gradients of all three, and compare errors with twice those of the plain attention in the dtype.
pytest's own time, imports and the first cases are not counted.

With --float64 it draws tensors and computes attention and its gradients in float64 instead, every sequence as long as the longest,
without masks: the scale of what values alone cost an oracle that is made of LibTorch's operations.

  build/release/bin/attnbench list --suite flash_attention_tests | .venv/bin/python scripts/flash_attention_tests.py [--float64]
"""
import argparse
import math
import random
import re
import sys
import time

try:
    import torch
except ModuleNotFoundError:
    sys.exit("flash_attention_tests: this Python has no torch: call it with .venv/bin/python, or another that has")

WARM_UP = 8
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def read_case(line):
    keys = dict(word.split("=", 1) for word in line.split("#")[0].split()[1:])
    low_high = lambda text: [int(n) for n in re.fullmatch(r"uniform\((\d+),(\d+)\)", text).groups()]
    window = [int(n) for n in keys.get("window", "-1:-1").split(":")]
    return {
        "b": int(keys["b"]), "hq": int(keys["hq"]), "hkv": int(keys.get("hkv", keys["hq"])), "d": int(keys["d"]),
        "q": low_high(keys["lens"]), "k": low_high(keys.get("klens", keys["lens"])),
        "dtype": DTYPES[keys.get("dtype", "bf16")], "causal": keys.get("mask") == "causal", "window": window,
    }


def draw(case, device):
    """Padded q, k, v with gradients, and the masks of their real tokens."""
    tensors, masks = [], []
    for heads, (low, high) in ((case["hq"], case["q"]), (case["hkv"], case["k"]), (case["hkv"], case["k"])):
        tensors.append(torch.randn(case["b"], high, heads, case["d"], device=device, dtype=case["dtype"], requires_grad=True))
    for low, high in (case["q"], case["k"]):
        lengths = torch.tensor([[random.randint(low, high)] for _ in range(case["b"])], device=device)
        masks.append(torch.arange(high, device=device) < lengths)
    return tensors, masks


def hidden(case, q_mask, k_mask):
    """bool [b, 1, queries, keys]: what a query does not see; the diagonal ends in the last real corner."""
    i = torch.arange(q_mask.shape[1], device=q_mask.device)[:, None]
    j = torch.arange(k_mask.shape[1], device=q_mask.device)
    shift = (k_mask.sum(1) - q_mask.sum(1))[:, None, None, None]
    unseen = ~k_mask[:, None, None, :]
    left, right = case["window"]
    if case["causal"]:
        right = 0
    if right >= 0:
        unseen = unseen | (j > i + shift + right)
    if left >= 0:
        unseen = unseen | (j < i + shift - left)
    return unseen


def plain(case, q, k, v, q_mask, unseen, in_float32):
    dtype = q.dtype
    if in_float32:
        q, k, v = q.float(), k.float(), v.float()
    group = case["hq"] // case["hkv"]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("bthd,bshd->bhts", q / math.sqrt(case["d"]), k)
    scores = scores.masked_fill(unseen, float("-inf"))
    p = torch.softmax(scores, -1).masked_fill(unseen.all(-1, keepdim=True), 0)
    out = torch.einsum("bhts,bshd->bthd", p.to(v.dtype), v)
    return out.masked_fill(~q_mask[:, :, None, None], 0).to(dtype)


def packed(case, q, k, v, q_mask, k_mask):
    """LibTorch's FlashAttention-2 on the real tokens, padded again."""
    rows_q, rows_k = q_mask.flatten().nonzero().flatten(), k_mask.flatten().nonzero().flatten()
    take = lambda x, rows: x.flatten(0, 1).index_select(0, rows)
    ends = lambda mask: torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    longest = lambda mask: int(mask.sum(1).max().item())
    left, right = case["window"]
    out = torch.ops.aten._flash_attention_forward(
        take(q, rows_q), take(k, rows_k), take(v, rows_k), ends(q_mask), ends(k_mask), longest(q_mask), longest(k_mask), 0.0,
        case["causal"], False, window_size_left=left if left >= 0 else None, window_size_right=right if right >= 0 else None)[0]
    return torch.zeros_like(q).flatten(0, 1).index_copy(0, rows_q, out).view_as(q)


def check(case, device):
    (q, k, v), (q_mask, k_mask) = draw(case, device)
    unseen = hidden(case, q_mask, k_mask)
    outs = [packed(case, q, k, v, q_mask, k_mask),
            plain(case, q, k, v, q_mask, unseen, in_float32=True),
            plain(case, q, k, v, q_mask, unseen, in_float32=False)]
    dout = torch.randn_like(q).masked_fill(~q_mask[:, :, None, None], 0)
    results = [(out,) + torch.autograd.grad(out, (q, k, v), dout) for out in outs]
    right = True
    for ours, exact, eager in zip(*results):
        error, allowed = (ours - exact).abs().max().item(), (eager - exact).abs().max().item()
        (ours - exact).abs().mean().item(), (eager - exact).abs().mean().item()  # the test prints them too
        right = right and error <= 3 * allowed + 1e-5
    return right


def float64_alone(case, device):
    """Draws a case's tensors; O, dQ, dK and dV by six products and a softmax."""
    heads, (_, queries), (_, keys) = case["b"] * case["hq"], case["q"], case["k"]
    draw_rows = lambda rows: torch.randn(heads, rows, case["d"], device=device, dtype=torch.float64)
    q, k, v, dout = draw_rows(queries), draw_rows(keys), draw_rows(keys), draw_rows(queries)
    p = torch.softmax(q @ k.mT, -1)
    out = p @ v
    ds = (dout @ v.mT - (dout * out).sum(-1, True)).mul_(p)
    return out, ds @ k, ds.mT @ q, p.mT @ dout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--float64", action="store_true", help="attention in float64 alone")
    in_float64 = parser.parse_args().float64
    if not torch.cuda.is_available():
        print("flash_attention_tests: needs a GPU", file=sys.stderr)
        return 3
    device = torch.device("cuda")
    cases = [read_case(line) for line in sys.stdin if line.startswith("attention ")]
    compute = float64_alone if in_float64 else check
    for case in cases[:WARM_UP]:
        compute(case, device)
    torch.cuda.synchronize()
    start = time.perf_counter()
    results = [compute(case, device) is True for case in cases]
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    outcome = "attention in float64 alone" if in_float64 else f"{sum(results)} within the test's tolerance"
    print(f"{len(cases)} cases in {seconds:.1f} s: {len(cases) / seconds:.1f} a second; {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
