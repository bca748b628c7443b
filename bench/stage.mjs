/**
 * Device memory for timing single ops through the addon: tensors with random or given values, and op calls with
 * everything encoded beforehand.
 */
import {
  DeviceContext,
  DTYPES,
  float32ToFloat16Bits,
  native,
  opSignature,
  parseDevice,
  rowMajorStrides,
  specBytes,
  TENSOR_WORDS,
  uniformGenerator,
} from 'metashard';

/** Weights of all alternatives of a row together: far more than any cache. */
const ROTATED_BYTES = 600e6;
const TABLE = 2 ** 20;

/** Uniform numbers in [0, 1), the same in every run. */
export const random = uniformGenerator(1);
const normals = Float32Array.from(
  { length: TABLE },
  () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()),
);

/** Outlier columns planted in K features: 7 of 4096, at least one. */
export const outlierColumns = (K) => Math.max(1, Math.round((7 * K) / 4096));

/**
 * One context on the CPU; `close` frees all it gave. A tensor is { buffer, dims, dtype, layout } and, where it is a
 * view, { offset, strides }.
 */
export class Stage {
  #context = new DeviceContext(parseDevice('cpu'));
  #scratch = { bytes: 0, buffer: 0 };

  /** A dense tensor, or a packed int8 matrix. */
  tensor(dims, dtype = 'float32', layout = 'strided') {
    return { buffer: this.#context.alloc(Math.max(1, specBytes({ dims, dtype, layout }))), dims, dtype, layout };
  }

  zeros(dims, dtype = 'float32') {
    const made = this.tensor(dims, dtype);
    native().zero(made.buffer, 0, specBytes(made));
    return made;
  }

  /** float32 N(0, 1), other floats rounded from it, scaled. */
  normal(dims, dtype = 'float32', scale = 1) {
    const made = this.tensor(dims, dtype);
    const count = dims.reduce((product, dim) => product * dim, 1);
    const table = scaledNormals(dtype, scale);
    for (let done = 0; done < count; done += TABLE) {
      native().write(made.buffer, done * DTYPES[dtype].bytes, table.subarray(0, Math.min(TABLE, count - done)));
    }
    return made;
  }

  ints(values, dims = [values.length]) {
    const made = this.tensor(dims, 'int32');
    native().write(made.buffer, 0, Int32Array.from(values));
    return made;
  }

  floats(values, dims = [values.length]) {
    const made = this.tensor(dims);
    native().write(made.buffer, 0, Float32Array.from(values));
    return made;
  }

  /** Activations [rows, K] with 7 of 4096 columns beyond the threshold of 6 in every row. */
  activations(rows, K) {
    const made = this.normal([rows, K], 'float32', 0.7);
    const columns = outlierColumns(K);
    for (let i = 0; i < columns; i++) {
      const column = Math.floor(((i + 0.5) * K) / columns);
      for (let row = 0; row < rows; row++) {
        native().write(made.buffer, (row * K + column) * 4, Float32Array.of(row % 2 === 0 ? 9 : -8));
      }
    }
    return made;
  }

  /** As many copies of `first` as make ROTATED_BYTES, itself among them. `bytes`: what one alternative takes. */
  rotate(first, bytes = specBytes(first)) {
    const copies = [first];
    while (copies.length * bytes < ROTATED_BYTES) {
      const copy = this.tensor(first.dims, first.dtype, first.layout);
      native().copy(copy.buffer, 0, first.buffer, 0, specBytes(first));
      copies.push(copy);
    }
    return copies;
  }

  /** A random int8 weight [N, K] with its scales, packed. */
  int8Weight(N, K) {
    const float = this.normal([N, K], 'float16', 0.02);
    const [CB, SCB] = [this.tensor([N, K], 'int8', 'packed_int8'), this.tensor([N])];
    this.call('quantize_weight', [float], [CB, SCB], [0])();
    return { CB, SCB };
  }

  /** An op with everything encoded, as a function that runs it. Calls share their scratch. */
  call(op, inputs, outputs, attributes = []) {
    const { code } = opSignature(op);
    const { id } = this.#context;
    const [ins, outs, attrs] = [encode(inputs), encode(outputs), Float64Array.from(attributes)];
    const scratch = this.#scratchOf(native().opScratch(id, code, ins, outs, attrs));
    return () => native().callOp(id, code, ins, outs, attrs, scratch);
  }

  /** Whether the backend has the op. */
  supports(op) {
    return native().opSupported(this.#context.id, opSignature(op).code);
  }

  #scratchOf(bytes) {
    if (bytes > this.#scratch.bytes) this.#scratch = { bytes, buffer: this.#context.alloc(bytes) };
    return bytes === 0 ? 0 : this.#scratch.buffer;
  }

  close() {
    this.#context.close();
  }
}

function scaledNormals(dtype, scale) {
  if (dtype === 'float32') return normals.map((x) => x * scale);
  if (dtype === 'float16') return Uint16Array.from(normals, (x) => float32ToFloat16Bits(x * scale));
  const bits = new Uint32Array(normals.map((x) => x * scale).buffer);
  return Uint16Array.from(bits, (word) => word >>> 16); // bfloat16, cut
}

function encode(tensors) {
  const words = new Float64Array(tensors.length * TENSOR_WORDS);
  for (const [i, tensor] of tensors.entries()) {
    if (tensor === null) continue;
    const { buffer, dims, dtype, layout, offset = 0, strides = rowMajorStrides(dims) } = tensor;
    const { code, bytes } = DTYPES[dtype];
    words.set([buffer, offset * bytes, code, layout === 'packed_int8' ? 1 : 0, dims.length, ...dims], i * TENSOR_WORDS);
    words.set(strides, i * TENSOR_WORDS + 9);
  }
  return words;
}
