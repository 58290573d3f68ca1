# CUDA kernels are written for Hopper (sm_90a) and built wherever nvcc is found; everything else builds without it.
set(TESSERA_HAVE_CUDA OFF)
if(NOT TESSERA_CUDA STREQUAL "OFF")
  set(CMAKE_CUDA_ARCHITECTURES 90a)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit 12.8 REQUIRED)
    set(TESSERA_HAVE_CUDA ON)
  elseif(TESSERA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TESSERA_CUDA=ON, but nvcc was not found")
  endif()
endif()
message(STATUS "tessera: CUDA ${TESSERA_HAVE_CUDA} ${CMAKE_CUDA_COMPILER}")

# CMake 3.25 drops CUDA_STANDARD 20 silently, so the option is passed by hand.
if(TESSERA_HAVE_CUDA)
  set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
  target_compile_options(tessera_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>")
endif()
