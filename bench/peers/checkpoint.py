"""A generated checkpoint (BLOOM or Llama) as numpy arrays, for the converters beside this file. Reads safetensors,
sharded or not."""

import json
import pathlib
import re

import numpy as np
from safetensors import safe_open


class Checkpoint:
    """`folder` holds config.json and *.safetensors. Sizes are named alike for both architectures."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        config = json.loads((self.folder / 'config.json').read_text())
        self.architecture = config['model_type']
        self.is_bloom = self.architecture == 'bloom'
        self.hidden = config['hidden_size']
        self.vocab = config['vocab_size']
        self.layers = config['n_layer'] if self.is_bloom else config['num_hidden_layers']
        self.heads = config['n_head'] if self.is_bloom else config['num_attention_heads']
        self.kv_heads = self.heads if self.is_bloom else config['num_key_value_heads']
        self.head_size = self.hidden // self.heads
        self.intermediate = 4 * self.hidden if self.is_bloom else config['intermediate_size']
        self.eps = config['layer_norm_epsilon'] if self.is_bloom else config['rms_norm_eps']
        self.rope_theta = config.get('rope_theta', 10000)
        self._shards = [safe_open(file, 'np') for file in sorted(self.folder.glob('*.safetensors'))]
        self._where = {name: shard for shard in self._shards for name in shard.keys()}

    def names(self):
        return list(self._where)

    def tensor(self, name):
        """float32; BLOOM's fused query_key_value, stored head by head as q, k, v, comes as all q, all k, all v."""
        values = self._where[name].get_tensor(name).astype(np.float32)
        if 'query_key_value' not in name:
            return values
        by_head = values.reshape((self.heads, 3, self.head_size) + values.shape[1:])
        return np.concatenate([by_head[:, i].reshape((-1,) + values.shape[1:]) for i in range(3)])

    def rotary_by_pairs(self, name, values):
        """Llama's q and k rows in the order in which ggml rotates them: neighbours, not halves."""
        match = re.search(r'([qk])_proj', name)
        if match is None:
            return values
        heads = self.heads if match.group(1) == 'q' else self.kv_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
        return halves.swapaxes(1, 2).reshape(values.shape)


def quantize_rows(weight):
    """[N, K] → int8 [N, K] and float32 scales [N]: symmetric, one scale a row (output channel)."""
    scale = np.abs(weight).max(1) / 127
    scale[scale == 0] = 1
    return np.rint(weight / scale[:, None]).astype(np.int8), scale.astype(np.float32)
