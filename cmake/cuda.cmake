# CUDA kernels are written for Hopper (sm_90a) and built wherever nvcc is found; everything else builds without it.
set(TESSERA_HAVE_CUDA OFF)
if(NOT TESSERA_CUDA STREQUAL "OFF")
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

# CMake 3.25 drops CUDA_STANDARD 20 silently, so the option is passed by hand. The variables are this directory's: set
# after the language is enabled, they leave a parent project its own, and the compiler's default where it has none.
if(TESSERA_HAVE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
  if(TESSERA_WARNINGS_AS_ERRORS)
    set(cuda_werror "-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror")
  else()
    set(cuda_werror "-Xcompiler=-Wall,-Wextra")
  endif()
  target_compile_options(tessera_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;${cuda_werror};\
-Xcompiler=-fstack-protector-strong,-ffile-prefix-map=${PROJECT_SOURCE_DIR}=.>")
endif()
