"""A generated checkpoint as an OpenVINO model in 8 bits: the graph that optimum-intel exports, written by hand, op
for op where the CPU plugin looks for patterns (compressed weights, root mean square norm, rotary positions, cache,
attention).

    python convert_openvino.py FOLDER OUT.xml

Weights are uint8 with zero point 128 and a float16 scale per output channel; embeddings and a tied head share one
table; the cache is the model's state; the head is computed for the last token only, as OpenVINO GenAI has it. Inputs:
input_ids, attention_mask, beam_idx, Llama also position_ids. """

import sys

import numpy as np
import openvino as ov
from openvino import opset13 as op

from checkpoint import Checkpoint, quantize_rows

NEGATIVE = -65504.0


def integers(*values):
    return op.constant(np.array(values, np.int64))


def scalar(value, dtype=np.int64):
    return op.constant(np.array(value, dtype))


def compressed(weight):
    """[N, K] as the plugin recognises it: (uint8 - 128) · scale in float16, then float32."""
    quantized, scale = quantize_rows(weight)
    stored = op.constant((quantized.astype(np.int16) + 128).astype(np.uint8))
    zero = op.constant(np.full((len(scale), 1), 128, np.uint8))
    centred = op.subtract(op.convert(stored, 'f16'), op.convert(zero, 'f16'))
    return op.convert(op.multiply(centred, op.constant(scale[:, None].astype(np.float16))), 'f32')


class Builder:
    """The parts that both architectures share. Shapes: B sequences, S new tokens, T tokens with the cached ones."""

    def __init__(self, checkpoint):
        self.c = checkpoint
        self.ids = op.parameter([-1, -1], np.int64, name='input_ids')
        self.mask = op.parameter([-1, -1], np.int64, name='attention_mask')
        self.beams = op.parameter([-1], np.int32, name='beam_idx')
        self.parameters = [self.ids, self.mask, self.beams]
        for parameter in self.parameters:
            parameter.output(0).set_names({parameter.get_friendly_name()})
        self.sinks = []
        self.batch = op.gather(op.shape_of(self.ids), integers(0), scalar(0))
        self.past = None
        self.group_shape = None

    def linear(self, x, name, bias=False):
        y = op.matmul(x, compressed(self.c.tensor(f'{name}.weight')), False, True)
        if not bias:
            return y
        return op.add(y, op.convert(op.constant(self.c.tensor(f'{name}.bias').astype(np.float16)), 'f32'))

    def heads(self, x, count):
        """[B, S, count · D] → [B, count, S, D]"""
        split = op.reshape(x, integers(0, 0, count, self.c.head_size), True)
        return op.transpose(split, integers(0, 2, 1, 3))

    def cached(self, name, new):
        """The cache's rows in the order of beam_idx, with `new` [B, KV, S, D] behind them; also the rows before."""
        kv, size = self.c.kv_heads, self.c.head_size
        empty = op.broadcast(scalar(0, np.float32), op.concat([self.batch, integers(kv, 0, size)], 0))
        variable = op.read_value(empty, name, ov.Type.f32, ov.PartialShape([-1, kv, -1, size]))
        past = op.gather(variable, self.beams, scalar(0))
        both = op.concat([past, new], -2)
        self.sinks.append(op.assign(both, name))
        return both, past

    def cache(self, layer, key, value):
        key, past = self.cached(f'past_key_values.{layer}.key', key)
        value, _ = self.cached(f'past_key_values.{layer}.value', value)
        if self.past is None:
            self.past = op.gather(op.shape_of(past), scalar(2), scalar(0))
        return key, value

    def total(self):
        """T, of the past and the new tokens."""
        return op.add(self.past, op.gather(op.shape_of(self.ids), scalar(1), scalar(0)))

    def causal(self):
        """[B, 1, S, T]: whether a token sees another."""
        total = self.total()
        keys = op.unsqueeze(op.range(scalar(0), total, scalar(1), 'i64'), integers(0, 1, 2))
        queries = op.unsqueeze(op.range(self.past, total, scalar(1), 'i64'), integers(0, 1, 3))
        seen = op.unsqueeze(op.convert(self.mask, 'boolean'), integers(1, 2))
        return op.logical_and(op.less_equal(keys, queries), seen)

    def attend(self, query, key, value, bias, scale=None):
        """→ [B, S, H]"""
        arguments = [query, key, value, bias] + ([] if scale is None else [scalar(scale, np.float32)])
        attended = op.scaled_dot_product_attention(*arguments, causal=False)
        return op.reshape(op.transpose(attended, integers(0, 2, 1, 3)), integers(0, 0, self.c.hidden), True)

    def embed(self, table):
        return op.gather(table, op.convert(self.ids, 'i32'), scalar(0))

    def finish(self, x, norm, table):
        last = op.slice(x, integers(-1), integers(2**31 - 1), integers(1), integers(1))
        logits = op.matmul(norm(last), table, False, True)
        logits.output(0).set_names({'logits'})
        return ov.Model([op.result(logits)], self.sinks, self.parameters, self.c.architecture)


def build_bloom(c):
    b = Builder(c)

    def layer_norm(name):
        weight, bias = (op.constant(c.tensor(f'transformer.{name}.{part}')) for part in ('weight', 'bias'))

        def norm(x):
            normed = op.mvn(x, integers(-1), True, c.eps, 'INSIDE_SQRT')
            return op.add(op.multiply(normed, weight), bias)

        return norm

    table = compressed(c.tensor('transformer.word_embeddings.weight'))
    x = layer_norm('word_embeddings_layernorm')(b.embed(table))
    slopes = (2.0 ** (-8 * (np.arange(c.heads) + 1) / c.heads)).astype(np.float32).reshape(1, c.heads, 1)
    bias = None
    for i in range(c.layers):
        at = f'transformer.h.{i}'
        qkv = b.linear(layer_norm(f'h.{i}.input_layernorm')(x), f'{at}.self_attention.query_key_value', True)
        split = op.reshape(qkv, integers(0, 0, 3, c.heads, c.head_size), True)
        query, key, value = (
            op.transpose(op.gather(split, scalar(part), scalar(2)), integers(0, 2, 1, 3)) for part in range(3)
        )
        key, value = b.cache(i, key, value)
        if bias is None:
            positions = op.multiply(op.subtract(op.cum_sum(b.mask, scalar(-1)), scalar(1)), b.mask)
            row = op.multiply(op.constant(slopes), op.convert(op.unsqueeze(positions, integers(1)), 'f32'))
            bias = op.select(b.causal(), op.unsqueeze(row, integers(2)), scalar(np.finfo(np.float32).min, np.float32))
        attended = b.attend(query, key, value, bias)
        x = op.add(x, b.linear(attended, f'{at}.self_attention.dense', True))
        up = b.linear(layer_norm(f'h.{i}.post_attention_layernorm')(x), f'{at}.mlp.dense_h_to_4h', True)
        x = op.add(x, b.linear(op.gelu(up, 'tanh'), f'{at}.mlp.dense_4h_to_h', True))
    return b.finish(x, layer_norm('ln_f'), table)


def build_llama(c):
    b = Builder(c)
    position_ids = op.parameter([-1, -1], np.int64, name='position_ids')
    position_ids.output(0).set_names({'position_ids'})
    b.parameters.append(position_ids)

    def rms_norm(name):
        weight = op.constant(c.tensor(f'{name}.weight'))

        def norm(x):
            mean = op.reduce_mean(op.power(x, scalar(2, np.float32)), integers(-1), True)
            inverse = op.divide(scalar(1, np.float32), op.sqrt(op.add(mean, scalar(c.eps, np.float32))))
            return op.multiply(weight, op.multiply(x, inverse))

        return norm

    frequencies = (1 / c.rope_theta ** (np.arange(0, c.head_size, 2) / c.head_size)).astype(np.float32)
    positions = op.convert(op.unsqueeze(position_ids, integers(1)), 'f32')
    angles = op.matmul(op.constant(frequencies.reshape(1, -1, 1)), positions, False, False)
    angles = op.transpose(angles, integers(0, 2, 1))
    angles = op.concat([angles, angles], -1)
    cos, sin = (op.unsqueeze(part(angles), integers(1)) for part in (op.cos, op.sin))

    def rotate(x):
        half, end = c.head_size // 2, 2**63 - 1
        upper = op.slice(x, integers(half), integers(end), integers(1), integers(3))
        lower = op.slice(x, integers(0), integers(half), integers(1), integers(3))
        turned = op.concat([op.multiply(upper, scalar(-1, np.float32)), lower], -1)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def repeated(x):
        """[B, KV, T, D] → [B, N, T, D]: every head of the cache for its group of query heads."""
        if b.group_shape is None:
            front = op.gather(op.shape_of(x), integers(0, 1), scalar(0))
            tokens = op.reshape(b.total(), integers(1), False)
            group = integers(c.heads // c.kv_heads)
            b.group_shape = op.concat([front, group, tokens, integers(c.head_size)], 0)
        wide = op.broadcast(op.unsqueeze(x, integers(2)), b.group_shape, broadcast_spec='BIDIRECTIONAL')
        return op.reshape(wide, integers(0, c.heads, -1, c.head_size), True)

    x = b.embed(compressed(c.tensor('model.embed_tokens.weight')))
    bias = None
    for i in range(c.layers):
        at = f'model.layers.{i}'
        normed = rms_norm(f'{at}.input_layernorm')(x)
        query = rotate(b.heads(b.linear(normed, f'{at}.self_attn.q_proj'), c.heads))
        key = rotate(b.heads(b.linear(normed, f'{at}.self_attn.k_proj'), c.kv_heads))
        value = b.heads(b.linear(normed, f'{at}.self_attn.v_proj'), c.kv_heads)
        key, value = b.cache(i, key, value)
        if bias is None:
            bias = op.select(b.causal(), scalar(0, np.float32), scalar(NEGATIVE, np.float32))
        attended = b.attend(query, repeated(key), repeated(value), bias, c.head_size**-0.5)
        x = op.add(x, b.linear(attended, f'{at}.self_attn.o_proj'))
        normed = rms_norm(f'{at}.post_attention_layernorm')(x)
        gated = op.multiply(op.swish(b.linear(normed, f'{at}.mlp.gate_proj')), b.linear(normed, f'{at}.mlp.up_proj'))
        x = op.add(x, b.linear(gated, f'{at}.mlp.down_proj'))
    return b.finish(x, rms_norm('model.norm'), compressed(c.tensor('lm_head.weight')))


def main(folder, path):
    checkpoint = Checkpoint(folder)
    ov.save_model((build_bloom if checkpoint.is_bloom else build_llama)(checkpoint), path, compress_to_fp16=False)


main(*sys.argv[1:])
