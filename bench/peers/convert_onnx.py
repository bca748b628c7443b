"""A generated checkpoint as an onnxruntime graph in int8, as transformers.js's dtype "q8" runs it.

    python convert_onnx.py FOLDER OUT.onnx

Linears are DynamicQuantizeMatMul: int8 weights with a scale per output channel, activations quantized to uint8 with
one scale a tensor as they come. The head is one of them; it is computed for the last token only. Attention is
onnxruntime's fused one, in float32: MultiHeadAttention with ALiBi as its bias for BLOOM, GroupQueryAttention with
rotary positions for Llama. Inputs: input_ids, total_sequence_length, past_key_i, past_value_i (Llama also:
seqlens_k); outputs: logits, present_key_i, present_value_i. Weights lie beside the graph in OUT.onnx.data.
"""

import os
import sys

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

from checkpoint import Checkpoint, quantize_rows

CONTRIB = 'com.microsoft'
TYPES = {np.dtype('float32'): T.FLOAT, np.dtype('int8'): T.INT8}


class Graph:
    """Nodes and initializers; large values go to the file of external data, page by page."""

    def __init__(self, path):
        self.path = path
        self.data = open(f'{path}.data', 'wb')
        self.nodes, self.initializers, self.inputs, self.outputs = [], [], [], []

    def weight(self, name, values):
        offset = -(-self.data.tell() // 4096) * 4096
        self.data.seek(offset)
        raw = np.ascontiguousarray(values).tobytes()
        self.data.write(raw)
        tensor = T(name=name, data_type=TYPES[values.dtype], dims=values.shape, data_location=T.EXTERNAL)
        location = {'location': os.path.basename(self.path) + '.data', 'offset': str(offset), 'length': str(len(raw))}
        for key, value in location.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        self.initializers.append(tensor)
        return name

    def constant(self, name, values, kind, dims):
        self.initializers.append(helper.make_tensor(name, kind, dims, values))
        return name

    def node(self, op, inputs, outputs, domain='', **attributes):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, name=outputs[0], **attributes))
        return outputs[0]

    def input(self, name, kind, dims):
        self.inputs.append(helper.make_tensor_value_info(name, kind, dims))

    def output(self, name, dims):
        self.outputs.append(helper.make_tensor_value_info(name, T.FLOAT, dims))

    def save(self, name):
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid('', 17), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 8
        onnx.save(model, self.path)
        self.data.close()


def linear(graph, checkpoint, x, name, out, bias=None):
    weight, scale = quantize_rows(checkpoint.tensor(name))
    inputs = [x, graph.weight(f'{out}_q', weight.T), graph.weight(f'{out}_s', scale)]
    if bias is not None:
        inputs += ['', graph.weight(f'{out}_b', checkpoint.tensor(bias))]
    return graph.node('DynamicQuantizeMatMul', inputs, out, CONTRIB)


def declare_inputs(graph, checkpoint):
    graph.input('input_ids', T.INT64, ['b', 's'])
    graph.input('total_sequence_length', T.INT32, [])
    if not checkpoint.is_bloom:
        graph.input('seqlens_k', T.INT32, ['b'])
    graph.output('logits', ['b', 's1', checkpoint.vocab])
    for layer in range(checkpoint.layers):
        for part in ('key', 'value'):
            graph.input(f'past_{part}_{layer}', T.FLOAT, ['b', checkpoint.kv_heads, 'p', checkpoint.head_size])
            graph.output(f'present_{part}_{layer}', ['b', checkpoint.kv_heads, 't', checkpoint.head_size])


def last_token(graph, x):
    for name, value in (('first', -1), ('end', 2**31 - 1), ('axis', 1)):
        graph.constant(f'last_{name}', [value], T.INT64, [1])
    return graph.node('Slice', [x, 'last_first', 'last_end', 'last_axis'], 'last')


def layer_norm(graph, checkpoint, x, name, out):
    parts = [graph.weight(f'{out}_{part}', checkpoint.tensor(f'{name}.{part}')) for part in ('weight', 'bias')]
    return graph.node('LayerNormalization', [x, *parts], out, axis=-1, epsilon=checkpoint.eps)


def alibi(graph, heads):
    """[1, heads, new tokens, all tokens]: slope · position of the key; causality is the op's own attribute."""
    slopes = 2 ** (-8 * (np.arange(heads) + 1) / heads)
    graph.weight('slopes', slopes.astype(np.float32).reshape(1, heads, 1, 1))
    for name, values, dims in (('zero', [0], []), ('one', [1], []), ('one_1', [1], [1]), ('heads_1', [heads], [1])):
        graph.constant(name, values, T.INT64, dims)
    graph.constant('any_1', [-1], T.INT64, [1])
    total = graph.node('Cast', ['total_sequence_length'], 'total', to=T.INT64)
    positions = graph.node('Range', ['zero', total, 'one'], 'positions')
    positions = graph.node('Cast', [positions], 'positions_f', to=T.FLOAT)
    bias = graph.node('Mul', ['slopes', positions], 'alibi_row')
    rows = graph.node('Gather', [graph.node('Shape', ['input_ids'], 'ids_shape'), 'one_1'], 'rows')
    keys = graph.node('Reshape', [total, 'any_1'], 'keys')
    shape = graph.node('Concat', ['one_1', 'heads_1', rows, keys], 'alibi_shape', axis=0)
    return graph.node('Expand', [bias, shape], 'alibi')


def build_bloom(graph, c):
    prefix = 'transformer.'
    table = c.tensor(f'{prefix}word_embeddings.weight')
    scale = np.abs(table).max() / 127
    graph.constant('table_s', [float(scale)], T.FLOAT, [])
    graph.constant('thirds', [c.hidden] * 3, T.INT64, [3])
    rows = graph.node('Gather', [graph.weight('table', np.rint(table / scale).astype(np.int8)), 'input_ids'], 'rows_q')
    x = graph.node('Mul', [graph.node('Cast', [rows], 'rows_f', to=T.FLOAT), 'table_s'], 'x')
    x = layer_norm(graph, c, x, f'{prefix}word_embeddings_layernorm', 'x_norm')
    bias = alibi(graph, c.heads)
    for i in range(c.layers):
        at = f'{prefix}h.{i}.'

        def dense(x, name, out):
            return linear(graph, c, x, f'{at}{name}.weight', out, f'{at}{name}.bias')

        normed = layer_norm(graph, c, x, f'{at}input_layernorm', f'norm1_{i}')
        qkv = dense(normed, 'self_attention.query_key_value', f'qkv_{i}')
        graph.node('Split', [qkv, 'thirds'], [f'q_{i}', f'k_{i}', f'v_{i}'], axis=-1)
        past = [f'past_key_{i}', f'past_value_{i}']
        outputs = [f'attention_{i}', f'present_key_{i}', f'present_value_{i}']
        inputs = [f'q_{i}', f'k_{i}', f'v_{i}', '', '', bias, *past]
        attended = graph.node('MultiHeadAttention', inputs, outputs, CONTRIB, num_heads=c.heads, unidirectional=1)
        x = graph.node('Add', [x, dense(attended, 'self_attention.dense', f'o_{i}')], f'residual1_{i}')
        normed = layer_norm(graph, c, x, f'{at}post_attention_layernorm', f'norm2_{i}')
        up = graph.node('FastGelu', [dense(normed, 'mlp.dense_h_to_4h', f'up_{i}')], f'gelu_{i}', CONTRIB)
        x = graph.node('Add', [x, dense(up, 'mlp.dense_4h_to_h', f'down_{i}')], f'residual2_{i}')
    x = layer_norm(graph, c, last_token(graph, x), f'{prefix}ln_f', 'norm_f')
    linear(graph, c, x, f'{prefix}word_embeddings.weight', 'logits')


def build_llama(graph, c):
    x = graph.node('Gather', [graph.weight('table', c.tensor('model.embed_tokens.weight')), 'input_ids'], 'x')
    frequencies = 1 / c.rope_theta ** (np.arange(0, c.head_size, 2) / c.head_size)
    angles = np.outer(np.arange(2048), frequencies)
    graph.weight('cos', np.cos(angles).astype(np.float32))
    graph.weight('sin', np.sin(angles).astype(np.float32))

    def rms_norm(x, name, out):
        weight = graph.weight(f'{out}_weight', c.tensor(f'{name}.weight'))
        return graph.node('SimplifiedLayerNormalization', [x, weight], out, axis=-1, epsilon=c.eps)

    for i in range(c.layers):
        at = f'model.layers.{i}.'

        def dense(x, name, out):
            return linear(graph, c, x, f'{at}{name}_proj.weight', out)

        normed = rms_norm(x, f'{at}input_layernorm', f'norm1_{i}')
        q, k, v = (dense(normed, f'self_attn.{part}', f'{part}_{i}') for part in 'qkv')
        inputs = [q, k, v, f'past_key_{i}', f'past_value_{i}', 'seqlens_k', 'total_sequence_length', 'cos', 'sin']
        outputs = [f'attention_{i}', f'present_key_{i}', f'present_value_{i}']
        sizes = {'num_heads': c.heads, 'kv_num_heads': c.kv_heads, 'do_rotary': 1}
        attended = graph.node('GroupQueryAttention', inputs, outputs, CONTRIB, **sizes)
        x = graph.node('Add', [x, dense(attended, 'self_attn.o', f'o_{i}')], f'residual1_{i}')
        normed = rms_norm(x, f'{at}post_attention_layernorm', f'norm2_{i}')
        gate, up = dense(normed, 'mlp.gate', f'gate_{i}'), dense(normed, 'mlp.up', f'up_{i}')
        silu = graph.node('Mul', [gate, graph.node('Sigmoid', [gate], f'sigmoid_{i}')], f'silu_{i}')
        down = dense(graph.node('Mul', [silu, up], f'gated_{i}'), 'mlp.down', f'down_{i}')
        x = graph.node('Add', [x, down], f'residual2_{i}')
    linear(graph, c, rms_norm(last_token(graph, x), 'model.norm', 'norm_f'), 'lm_head.weight', 'logits')


def main(folder, path):
    checkpoint = Checkpoint(folder)
    graph = Graph(path)
    declare_inputs(graph, checkpoint)
    (build_bloom if checkpoint.is_bloom else build_llama)(graph, checkpoint)
    graph.save(checkpoint.architecture)


main(*sys.argv[1:])
