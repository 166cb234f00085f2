"""A llama decoder as an OpenVINO graph."""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from worker import EPSILON, HEAD_DIM, rotary_table

# Ranges of activations after which they are clipped, in `openvino-int8`: they do not matter for speed.
ACTIVATION_RANGE = 6.0


def constant(values):
    return ops.constant(values)


def sizes(*values):
    return ops.constant(np.array(values, np.int64))


class Graph:
    def __init__(self, engine, shape, batch, tokens):
        self.engine, self.shape, self.batch, self.tokens = engine, shape, batch, tokens
        self.random = np.random.default_rng(1)
        self.heads, self.kv_heads = shape["heads"], shape["kv_heads"]
        cosine, sine = rotary_table(tokens)
        self.cosine = constant(np.concatenate([cosine, cosine], 1)[None, None])
        self.sine = constant(np.concatenate([sine, sine], 1)[None, None])

    def linear(self, x, rows, columns):
        """`x` times a random matrix in the engine's number format."""
        values = self.random.integers(-127, 128, (rows, columns), dtype=np.int8)
        scale = np.float32(1.0 / (73 * np.sqrt(columns)))
        if self.engine == "openvino-bf16":
            return ops.matmul(x, constant(values.astype(np.float32) * scale), False, True)
        scales = np.full((rows, 1), scale, np.float32)
        weights = ops.multiply(ops.convert(constant(values), "f32"), constant(scales))
        if self.engine == "openvino-int8":
            low, high = (constant(np.float32(sign * ACTIVATION_RANGE)) for sign in (-1.0, 127.0 / 128.0))
            x = ops.fake_quantize(x, low, high, low, high, 256)
        return ops.matmul(x, weights, False, True)

    def norm(self, x):
        mean = ops.reduce_mean(ops.power(x, constant(np.float32(2))), sizes(-1), True)
        inverse = ops.divide(constant(np.float32(1)), ops.sqrt(ops.add(mean, constant(np.float32(EPSILON)))))
        return ops.multiply(ops.multiply(x, inverse), constant(np.ones(self.shape["hidden"], np.float32)))

    def split_heads(self, x, heads):
        x = ops.reshape(x, sizes(self.batch, self.tokens, heads, HEAD_DIM), False)
        return ops.transpose(x, sizes(0, 2, 1, 3))

    def rotate(self, x):
        halves = ops.split(x, constant(np.int64(3)), 2)
        turned = ops.concat([ops.multiply(halves.output(1), constant(np.float32(-1))), halves.output(0)], 3)
        return ops.add(ops.multiply(x, self.cosine), ops.multiply(turned, self.sine))

    def repeat(self, x):
        group = self.heads // self.kv_heads
        if group == 1:
            return x
        x = ops.unsqueeze(x, sizes(2))
        x = ops.broadcast(x, sizes(self.batch, self.kv_heads, group, self.tokens, HEAD_DIM))
        return ops.reshape(x, sizes(self.batch, self.heads, self.tokens, HEAD_DIM), False)

    def attention(self, x):
        hidden, key_size = self.shape["hidden"], self.kv_heads * HEAD_DIM
        query = self.rotate(self.split_heads(self.linear(x, hidden, hidden), self.heads))
        key = self.rotate(self.split_heads(self.linear(x, key_size, hidden), self.kv_heads))
        value = self.split_heads(self.linear(x, key_size, hidden), self.kv_heads)
        attended = ops.scaled_dot_product_attention(query, self.repeat(key), self.repeat(value), causal=True)
        return ops.reshape(ops.transpose(attended, sizes(0, 2, 1, 3)), sizes(self.batch, self.tokens, hidden), False)

    def last_row(self, x):
        return ops.gather(x, sizes(self.tokens - 1), constant(np.int64(1)))

    def build(self):
        hidden, feed_forward = self.shape["hidden"], self.shape["feed_forward"]
        ids = ops.parameter([self.batch, self.tokens], np.int64, "ids")
        embedding = self.random.standard_normal((self.shape["vocabulary"], hidden), dtype=np.float32)
        residual = ops.gather(constant(embedding), ids, constant(np.int64(0)))
        for layer in range(self.shape["layers"]):
            attended = self.attention(self.norm(residual))
            if layer == self.shape["layers"] - 1:
                attended, residual = self.last_row(attended), self.last_row(residual)
            residual = ops.add(residual, self.linear(attended, hidden, hidden))
            normed = self.norm(residual)
            gate = ops.swish(self.linear(normed, feed_forward, hidden))
            gated = ops.multiply(gate, self.linear(normed, feed_forward, hidden))
            residual = ops.add(residual, self.linear(gated, hidden, feed_forward))
        states = ops.reshape(self.norm(residual), sizes(self.batch, hidden), False)
        return ov.Model([states], [ids], "llama")


def compile_model(engine, shape, threads, batch, tokens):
    model = Graph(engine, shape, batch, tokens).build()
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    options["INFERENCE_PRECISION_HINT"] = "bf16" if engine == "openvino-bf16" else "f32"
    if engine == "openvino-weights8":
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32
    compiled = ov.Core().compile_model(model, "CPU", options)
    request = compiled.create_infer_request()

    def infer(ids):
        request.infer({0: ids})
        return request.get_output_tensor(0).data

    return infer
