"""One engine of another project with one random-weight model of a shape, under the same protocol as the Rust workers: `ready`
after a first run, then one run and its seconds for every line of standard input.

    worker.py ENGINE SHAPE_JSON THREADS BATCH PROMPTS PROMPT_TOKENS      with ENGINE one of openvino-int8, openvino-weights8,
                                                                         openvino-bf16, onnxruntime-int8

A run is PROMPTS prompts in batches of BATCH. As llama.cpp does, the last layer's MLP runs for each prompt's last row only.
"""

import json
import sys
import time

import numpy as np

HEAD_DIM = 64
EPSILON = 1e-5
# The embedding is a look-up: its rows do not matter for speed.
VOCABULARY_MAX = 8192


def rotary_table(tokens):
    angles = np.arange(tokens)[:, None] * 10_000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def main():
    engine, shape, threads, batch, prompts, tokens = sys.argv[1:7]
    shape, threads, batch, prompts, tokens = json.loads(shape), int(threads), int(batch), int(prompts), int(tokens)
    shape["vocabulary"] = min(shape["vocabulary"], VOCABULARY_MAX)
    if engine.startswith("openvino"):
        from openvino_graph import compile_model
    else:
        from onnxruntime_graph import compile_model
    infer = compile_model(engine, shape, threads, batch, tokens)
    random = np.random.default_rng(3)
    inputs = [
        random.integers(0, shape["vocabulary"], (batch, tokens), dtype=np.int64) for _ in range(prompts // batch)
    ]

    def run():
        for ids in inputs:
            states = infer(ids)
            assert states.shape == (batch, shape["hidden"]) and np.isfinite(states).all(), states.shape

    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
