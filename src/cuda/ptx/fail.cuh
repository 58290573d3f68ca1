// How a kernel ends that can not go on.
#pragma once

#include <cstdint>

namespace tessera::ptx {

// Ends the kernel with an illegal address. Not with a trap: where one can be reached, ptxas (12.9 to 13.5) holds a
// warpgroup to the registers that it was launched with, whatever setmaxnreg gave it, and spills the rest.
__device__ inline void fail() { asm volatile("st.global.u32 [%0], %1;" ::"l"(uint64_t{0}), "r"(0) : "memory"); }

}  // namespace tessera::ptx
