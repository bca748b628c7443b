/** Before all tests: the emulated CUDA driver and the kernels built for it, which `npm start` does not build. */
import { buildEmulator } from '../scripts/build-emulator.mjs';

export default function setup() {
  buildEmulator({ tests: true });
}
