#!/usr/bin/env python3
"""A llama of random bf16 weights in PyTorch, asked for labels of flows: for each line of standard input, a JSON request
`{"case": "shared" | "whole", "flows": N}`, it answers with a line `{"seconds": S, "setting": "..."}` or `{"error": "..."}`.

    torch_llama.py [--device DEVICE] SHAPE_JSON      first line of the answer: {"engine": "...", "device": "..."} or {"error": "..."}

A flow has `tokens` tokens, of which the first `shared_tokens` are the same in all flows. `whole` runs them all; `shared` has the keys and
values of the shared ones from before, at the front of buffers that each flow's own are written behind. As in the engine that this is
compared with, the last layer runs its queries, its MLP and the label rows for each flow's last token only.

Attention is `scaled_dot_product_attention`. The layers run as they are and through `torch.compile`, each as a captured graph where
there is a device, and with the mask given in two ways; the fastest of these is measured, and named.
"""

import argparse
import json
import statistics
import sys
import time

TRIES = 3


def error_text(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main():
    try:
        import torch
        import torch.nn.functional as functional
    except ImportError as error:
        print(json.dumps({"error": f"no PyTorch: {error}"}), flush=True)
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("shape", type=json.loads)
    arguments = parser.parse_args()
    shape, device = arguments.shape, torch.device(arguments.device)
    has_cuda = device.type == "cuda"
    if has_cuda and not torch.cuda.is_available():
        print(json.dumps({"error": "PyTorch finds no CUDA device"}), flush=True)
        return
    try:
        worker = Llama(torch, functional, shape, device)
    except Exception as error:  # Out of memory above all: whatever it is, the others go on.
        print(json.dumps({"error": error_text(error)}), flush=True)
        return
    name = torch.cuda.get_device_name(device) if has_cuda else "cpu"
    print(json.dumps({"engine": f"PyTorch {torch.__version__} bf16", "device": name}), flush=True)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = worker.measure(request["case"], request["flows"])
        except Exception as error:
            answer = {"error": error_text(error)}
        print(json.dumps(answer), flush=True)


class Llama:
    def __init__(self, torch, functional, shape, device):
        self.torch, self.functional, self.shape, self.device = torch, functional, shape, device
        self.heads = shape["heads"]
        self.head_dim = shape["hidden"] // self.heads
        hidden, inner = shape["hidden"], shape["feed_forward"]
        generator = torch.Generator(device=device).manual_seed(7)

        def random(rows, columns):
            weights = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
            return weights.normal_(0.0, columns**-0.5, generator=generator)

        self.layers = [
            {
                "qkv": random(3 * hidden, hidden),
                "output": random(hidden, hidden),
                "gate_up": random(2 * inner, hidden),
                "down": random(hidden, inner),
            }
            for _ in range(shape["layers"])
        ]
        self.embedding = random(shape["vocabulary"], hidden)
        self.label_weight = random(shape["labels"], hidden)
        angles = torch.arange(shape["tokens"])[:, None] * 10_000.0 ** (
            -torch.arange(0, self.head_dim, 2) / self.head_dim
        )
        self.cosines = angles.cos().to(device, torch.bfloat16)
        self.sines = angles.sin().to(device, torch.bfloat16)
        # Steps by their names in a setting.
        self.compiled = {}
        self.ready = {}
        if hasattr(torch, "_dynamo"):
            for limit in ("cache_size_limit", "recompile_limit"):
                if hasattr(torch._dynamo.config, limit):
                    setattr(torch._dynamo.config, limit, 256)

    def norm(self, x):
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype)

    def rotate(self, x, first, rows):
        cosines, sines = self.cosines[first : first + rows], self.sines[first : first + rows]
        even, odd = x[..., 0::2], x[..., 1::2]
        return self.torch.stack((even * cosines - odd * sines, odd * cosines + even * sines), -1).flatten(-2)

    def split_heads(self, x):
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def before_attention(self, x, qkv, first, is_last):
        """Queries, keys and values; queries of each flow's last row only where `is_last`."""
        hidden, rows = self.shape["hidden"], x.shape[1]
        normed = self.norm(x)
        linear = self.functional.linear
        if is_last:
            queries = self.rotate(self.split_heads(linear(normed[:, -1:], qkv[:hidden])), first + rows - 1, 1)
            keys, values = linear(normed, qkv[hidden:]).chunk(2, -1)
        else:
            queries, keys, values = linear(normed, qkv).chunk(3, -1)
            queries = self.rotate(self.split_heads(queries), first, rows)
        return queries, self.rotate(self.split_heads(keys), first, rows), self.split_heads(values)

    def after_attention(self, x, attended, output, gate_up, down):
        linear = self.functional.linear
        x = x + linear(attended.transpose(1, 2).flatten(-2), output)
        gate, up = linear(self.norm(x), gate_up).chunk(2, -1)
        return x + linear(self.functional.silu(gate) * up, down)

    def attend(self, queries, keys, values, mask):
        return self.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=None if mask == "causal" else mask, is_causal=mask == "causal"
        )

    def forward(self, ids, first, caches, mask, before, after):
        """The likeliest label of each flow; `caches` has all keys and values, the shared ones filled in, or is None."""
        x = self.embedding[ids]
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            is_last = index == last
            queries, keys, values = before(x, layer["qkv"], first, is_last)
            if caches is not None:
                all_keys, all_values = caches[index]
                all_keys[:, :, first:].copy_(keys)
                all_values[:, :, first:].copy_(values)
                keys, values = all_keys, all_values
            if is_last:
                x = x[:, -1:]
            attended = self.attend(queries, keys, values, None if is_last else mask)
            x = after(x, attended, layer["output"], layer["gate_up"], layer["down"])
        logits = self.functional.linear(self.norm(x[:, -1]), self.label_weight).float()
        return logits.log_softmax(-1).max(-1)

    def masks(self, first, rows):
        """The ways to say that row i sees all keys up to its own."""
        torch = self.torch
        if first == 0:
            return {"causal": "causal"}
        positions = torch.arange(first + rows, device=self.device)
        masks = {"mask": positions[None, :] <= positions[first:, None]}
        try:
            from torch.nn.attention.bias import causal_lower_right

            masks["lower right"] = causal_lower_right(rows, first + rows)
        except ImportError:
            pass
        return masks

    def settings(self, case, flows):
        """Functions of one run each, by name."""
        torch, shape = self.torch, self.shape
        first = shape["shared_tokens"] if case == "shared" else 0
        rows = shape["tokens"] - first
        ids = torch.randint(shape["vocabulary"], (flows, rows), device=self.device)
        caches = None
        if first > 0:
            # What the shared tokens left behind; random, for speed does not depend on it.
            size = (flows, self.heads, shape["tokens"], self.head_dim)
            pair = lambda: torch.randn(size, dtype=torch.bfloat16, device=self.device)
            caches = [(pair(), pair()) for _ in self.layers]
        steps = {"eager": (self.before_attention, self.after_attention)}
        if hasattr(torch, "compile"):
            if not self.compiled:
                compile_it = lambda step: torch.compile(step, dynamic=False)
                self.compiled["compiled"] = (compile_it(self.before_attention), compile_it(self.after_attention))
            steps.update(self.compiled)
        for mask_name, mask in self.masks(first, rows).items():
            for name, (before, after) in steps.items():
                yield (
                    f"{name}, {mask_name}",
                    lambda before=before, after=after, mask=mask: self.forward(ids, first, caches, mask, before, after),
                )

    def synchronize(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def captured(self, run):
        """The same run as a graph."""
        torch = self.torch
        if self.device.type != "cuda":
            return run
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def seconds(self, run):
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start

    def prepare(self, case, flows):
        """The fastest setting and its name; what failed is told on standard error."""
        best = None
        with self.torch.inference_mode():
            for name, run in self.settings(case, flows):
                try:
                    for _ in range(2):
                        self.seconds(run)
                    ways = {name: run}
                    if self.device.type == "cuda":
                        ways[f"{name}, graph"] = self.captured(run)
                    for way, function in ways.items():
                        took = statistics.median(self.seconds(function) for _ in range(TRIES))
                        print(f"{case} {flows}: {way}: {took:.4f} s", file=sys.stderr)
                        if best is None or took < best[0]:
                            best = (took, way, function)
                except Exception as error:
                    print(f"{case} {flows}: {name}: {error_text(error)}", file=sys.stderr)
        if best is None:
            raise RuntimeError("no setting works")
        return best[1:]

    def measure(self, case, flows):
        if (case, flows) not in self.ready:
            self.ready[case, flows] = self.prepare(case, flows)
        name, run = self.ready[case, flows]
        with self.torch.inference_mode():
            return {"seconds": self.seconds(run), "setting": name}


if __name__ == "__main__":
    main()
