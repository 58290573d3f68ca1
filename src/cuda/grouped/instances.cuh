// From what a launch is told to the template arguments of a kernel: each function calls `function` with the value as a
// type, and so compiles one instance for each value.
//
//   with_element(dtype, [&](auto element) {
//     return with_role(role, [&](auto role) { return launch<decltype(element), role>(); });
//   });
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cuda/std/type_traits>

#include "cuda/grouped/problem.h"

namespace tessera::grouped {

template <auto kValue>
using Constant = ::cuda::std::integral_constant<decltype(kValue), kValue>;

/// The 16-bit type, by a value of it.
template <class Function>
auto with_element(DType dtype, Function&& function) {
  return dtype == DType::bf16 ? function(__nv_bfloat16{}) : function(__half{});
}

template <class Function>
auto with_role(Role role, Function&& function) {
  switch (role) {
    case Role::gate_up: return function(Constant<Role::gate_up>{});
    case Role::up_only: return function(Constant<Role::up_only>{});
    default: return function(Constant<Role::down>{});
  }
}

template <class Function>
auto with_bool(bool value, Function&& function) {
  return value ? function(Constant<true>{}) : function(Constant<false>{});
}

}  // namespace tessera::grouped
