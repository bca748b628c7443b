// The test kernels as one translation unit: for the emulator, and with nvcc for driver_contract on a real GPU.
#include "example.cu"
#include "wrong.cu"
