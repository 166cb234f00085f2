"""A llama decoder as an ONNX graph with ONNX Runtime's fused operators and dynamically quantised int8 products."""

import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from worker import EPSILON, HEAD_DIM, rotary_table

MICROSOFT = "com.microsoft"


class Graph:
    def __init__(self, shape, batch, tokens):
        self.shape, self.batch, self.tokens = shape, batch, tokens
        self.random = np.random.default_rng(1)
        self.nodes, self.constants, self.names = [], [], 0

    def name(self):
        self.names += 1
        return f"v{self.names}"

    def constant(self, values):
        name = self.name()
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind, inputs, outputs=1, domain="", **attributes):
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names if outputs > 1 else names[0]

    def quantise(self, x):
        return self.node("DynamicQuantizeLinear", [x], 3)

    def linear(self, quantised, rows, columns):
        """The pattern that ONNX Runtime fuses into one product of bytes with float output."""
        values, scale, zero = quantised
        weights = self.constant(self.random.integers(-127, 128, (columns, rows), dtype=np.int8))
        weight_scale = self.constant(np.array(1.0 / (73 * np.sqrt(columns)), np.float32))
        weight_zero = self.constant(np.array(0, np.int8))
        product = self.node("MatMulInteger", [values, weights, zero, weight_zero])
        product = self.node("Cast", [product], to=TensorProto.FLOAT)
        return self.node("Mul", [product, self.node("Mul", [scale, weight_scale])])

    def norm(self, x):
        weight = self.constant(np.ones(self.shape["hidden"], np.float32))
        return self.node("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=EPSILON)

    def attention(self, x, shared):
        hidden, key_size = self.shape["hidden"], self.shape["kv_heads"] * HEAD_DIM
        quantised = self.quantise(x)
        query, key, value = (self.linear(quantised, rows, hidden) for rows in (hidden, key_size, key_size))
        output, _, _ = self.node(
            "GroupQueryAttention",
            [query, key, value, "", "", *shared],
            3,
            MICROSOFT,
            num_heads=self.shape["heads"],
            kv_num_heads=self.shape["kv_heads"],
            do_rotary=1,
        )
        return output

    def build(self):
        hidden, feed_forward = self.shape["hidden"], self.shape["feed_forward"]
        embedding = self.random.standard_normal((self.shape["vocabulary"], hidden), dtype=np.float32)
        residual = self.node("Gather", [self.constant(embedding), "ids"])
        shared = [
            self.constant(np.full(self.batch, self.tokens - 1, np.int32)),
            self.constant(np.array(self.tokens, np.int32)),
            *(self.constant(table) for table in rotary_table(self.tokens)),
        ]
        last = self.constant(np.array([self.tokens - 1], np.int64))
        for layer in range(self.shape["layers"]):
            attended = self.attention(self.norm(residual), shared)
            if layer == self.shape["layers"] - 1:
                attended, residual = (self.node("Gather", [x, last], axis=1) for x in (attended, residual))
            residual = self.node("Add", [residual, self.linear(self.quantise(attended), hidden, hidden)])
            quantised = self.quantise(self.norm(residual))
            gate = self.node("QuickGelu", [self.linear(quantised, feed_forward, hidden)], 1, MICROSOFT, alpha=1.0)
            gated = self.node("Mul", [gate, self.linear(quantised, feed_forward, hidden)])
            residual = self.node("Add", [residual, self.linear(self.quantise(gated), hidden, feed_forward)])
        size = self.constant(np.array([self.batch, hidden], np.int64))
        states = self.node("Reshape", [self.norm(residual), size])
        graph = helper.make_graph(
            self.nodes,
            "llama",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, [self.batch, self.tokens])],
            [helper.make_tensor_value_info(states, TensorProto.FLOAT, [self.batch, hidden])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def compile_model(_engine, shape, threads, batch, tokens):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        onnx.save(Graph(shape, batch, tokens).build(), file.name)
        session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"ids": ids})[0]
