# Compiles module.cu into the fat binary IMAGE: machine code for every architecture of the list that this NVCC knows, and
# PTX of the newest, which newer GPUs compile at load. What ptxas says of registers and spills goes to IMAGE.log.
set(wanted 75 80 86 89 90 100 120)

execute_process(COMMAND ${NVCC} --list-gpu-arch OUTPUT_VARIABLE known RESULT_VARIABLE failed ERROR_VARIABLE log)
if(failed)
  message(FATAL_ERROR "${NVCC} --list-gpu-arch failed: ${log}")
endif()
foreach(arch IN LISTS wanted)
  if(known MATCHES "compute_${arch}\n")
    list(APPEND targets -gencode arch=compute_${arch},code=sm_${arch})
    set(newest ${arch})
  endif()
endforeach()

# No contraction, so that a kernel gives the same bits on every GPU and on the emulator; where fused, it says ms_fma.
execute_process(
  COMMAND ${NVCC} -std=c++17 -O3 -fmad=false -fatbin -Xfatbin=-compress-all -Xptxas=-v --threads 2 -ccbin ${HOST_COMPILER}
          -I${PACKAGE}/../core/native/include ${targets} -gencode arch=compute_${newest},code=compute_${newest}
          -o ${IMAGE} ${PACKAGE}/native/kernels/module.cu
  RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
file(WRITE ${IMAGE}.log "${log}")
if(failed)
  file(REMOVE ${IMAGE})
  message(FATAL_ERROR "nvcc failed:\n${log}")
endif()
