// Tuning numbers of the output layer.
#pragma once

namespace tessera::kernels::output_layer {

struct Policy {
  int threads;            // of a CTA: a warp a record
  int min_ctas;           // on a multiprocessor
  int classes_at_a_time;  // sums a lane holds: the record is read once for so many classes
};

// Classifiers have few classes: 4 sums cover most of them with one pass. 8 warps a CTA share the weights in L1.
constexpr Policy default_policy() { return {256, 3, 4}; }

}  // namespace tessera::kernels::output_layer
